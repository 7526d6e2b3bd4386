#include "collective/threads.h"

#include <condition_variable>
#include <cstring>
#include <mutex>
#include <optional>

#include "collective/header.h"
#include "collective/host_reduce.h"
#include "core/error.h"

namespace bnpass::collective {
namespace {

/// The place where the replicas of one group meet. The last to come judges the headers, reduces in rank order, and
/// writes the result into everybody's memory while everybody else sleeps: one result, the same bits everywhere.
class Meeting {
 public:
  Meeting(std::string name, size_t size, Deadline deadline)
      : name_(std::move(name)), deadline_(deadline), seats_(size) {}

  size_t size() const { return seats_.size(); }
  Deadline deadline() const { return deadline_; }

  /// Takes part in a call. failure: why this replica cannot, if that is the purpose.
  void meet(size_t rank, const Call& call, Purpose purpose, void* data, const std::string& failure = "") {
    std::unique_lock<std::mutex> lock(mutex_);
    refuse_failed();
    Seat& seat = seats_[rank];
    if (seat.here) {
      throw Error(
          "two threads of replica " + std::to_string(rank) + " use group '" + name_ + "' at once: " + name_of(call),
          Code::runtime);
    }
    for (size_t other = 0; other < size(); ++other) {
      if (seats_[other].left) fail_for_good(lock, replica_of(other) + " has left, before " + name_of(call));
    }
    seat.here = true;
    seat.header = header_of(call, purpose);
    seat.account = account_of(call, purpose, failure);
    seat.data = data;
    if (++present_ < size()) {
      sleep(lock, call);
    } else {
      conclude(lock, call, purpose);
    }
  }

  void leave(size_t rank) {
    const std::lock_guard<std::mutex> lock(mutex_);
    seats_[rank].left = true;
    if (present_ > 0 && !failure_) {
      failure_ = replica_of(rank) + " has left while others wait for it";
      everybody_.notify_all();
    }
  }

  void break_off(const std::string& sentence) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!failure_) failure_ = sentence;
    everybody_.notify_all();
  }

 private:
  struct Seat {
    bool here = false;
    bool left = false;
    Header header{};
    Account account{};
    void* data = nullptr;
  };

  std::string replica_of(size_t rank) const { return "replica " + std::to_string(rank) + " of group '" + name_ + "'"; }

  void refuse_failed() const {
    if (failure_) throw Error("this group failed before: " + *failure_, Code::runtime);
  }

  [[noreturn]] void fail_for_good(std::unique_lock<std::mutex>&, const std::string& sentence) {
    failure_ = sentence;
    everybody_.notify_all();
    throw Error(sentence, Code::runtime);
  }

  /// Waits until this round is concluded, or the group has failed.
  void sleep(std::unique_lock<std::mutex>& lock, const Call& call) {
    const uint64_t round = round_;
    const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(deadline_);
    const bool done = everybody_.wait_until(lock, end, [&] { return round_ != round || failure_; });
    if (round_ != round) return;
    if (done) throw Error(*failure_, Code::runtime);
    fail_for_good(lock, missing() + " did not come to " + name_of(call) + " within " + seconds_text(deadline_.count()));
  }

  std::string missing() const {
    std::string ranks;
    size_t count = 0;
    for (size_t rank = 0; rank < size(); ++rank) {
      if (seats_[rank].here) continue;
      ranks += (count++ == 0 ? "" : ", ") + std::to_string(rank);
    }
    return (count == 1 ? "replica " : "replicas ") + ranks + " of group '" + name_ + "'";
  }

  void conclude(std::unique_lock<std::mutex>& lock, const Call& call, Purpose purpose) {
    Header header = seats_[0].header;
    for (const Seat& seat : seats_) reduce(header, seat.header);
    if (!agrees(header)) fail_for_good(lock, sentence_of(accounts()));
    if (purpose == Purpose::payload && call.length > 0) reduce_payload(call);
    for (Seat& seat : seats_) seat.here = false;
    present_ = 0;
    ++round_;
    everybody_.notify_all();
  }

  std::vector<Account> accounts() const {
    std::vector<Account> accounts;
    for (const Seat& seat : seats_) accounts.push_back(seat.account);
    return accounts;
  }

  void reduce_payload(const Call& call) {
    for (size_t rank = 1; rank < size(); ++rank) host_reduce(call, seats_[0].data, seats_[rank].data);
    for (size_t rank = 1; rank < size(); ++rank) {
      std::memcpy(seats_[rank].data, seats_[0].data, call.length * size_of(call.wire));
    }
  }

  const std::string name_;
  const Deadline deadline_;
  std::mutex mutex_;
  std::condition_variable everybody_;
  std::vector<Seat> seats_;
  size_t present_ = 0;
  uint64_t round_ = 0;
  std::optional<std::string> failure_;
};

class ThreadGroup final : public HostGroup {
 public:
  ThreadGroup(std::shared_ptr<Meeting> meeting, size_t rank) : meeting_(std::move(meeting)), rank_(rank) {}
  ~ThreadGroup() override { meeting_->leave(rank_); }
  ThreadGroup(const ThreadGroup&) = delete;
  ThreadGroup& operator=(const ThreadGroup&) = delete;

  int size() const override { return static_cast<int>(meeting_->size()); }
  int rank() const override { return static_cast<int>(rank_); }
  void all_reduce(const Call& call, void* data) override { meeting_->meet(rank_, call, Purpose::payload, data); }
  void agree(const Call& call) override { meeting_->meet(rank_, call, Purpose::agreement, nullptr); }
  [[noreturn]] void fail(const Call& call, const std::string& failure) override {
    meeting_->meet(rank_, call, Purpose::failure, nullptr, failure);
    throw Error(failure);  // not reached: a header with a failure never agrees
  }
  void break_off(const std::string& sentence) override { meeting_->break_off(sentence); }
  Deadline deadline() const override { return meeting_->deadline(); }

 private:
  const std::shared_ptr<Meeting> meeting_;
  const size_t rank_;
};

}  // namespace

std::vector<std::shared_ptr<Groups>> thread_groups(int size, Deadline deadline,
                                                   const std::vector<SubGroup>& sub_groups) {
  if (size < 1) throw Error("a group has at least one replica, not " + std::to_string(size));
  if (!(deadline.count() > 0)) throw Error("a deadline is more than 0 s, not " + seconds_text(deadline.count()));
  const std::string fault = fault_of(sub_groups, size);
  if (!fault.empty()) throw Error(fault);

  const auto world = std::make_shared<Meeting>(kWorld, static_cast<size_t>(size), deadline);
  std::vector<std::shared_ptr<NamedGroups>> replicas;
  for (size_t rank = 0; rank < world->size(); ++rank) {
    replicas.push_back(std::make_shared<NamedGroups>(sub_groups));
    replicas.back()->add(kWorld, std::make_shared<ThreadGroup>(world, rank));
  }
  for (const SubGroup& sub_group : sub_groups) {
    const auto meeting = std::make_shared<Meeting>(sub_group.name, sub_group.members.size(), deadline);
    for (size_t rank = 0; rank < sub_group.members.size(); ++rank) {
      const auto member = static_cast<size_t>(sub_group.members[rank]);
      replicas[member]->add(sub_group.name, std::make_shared<ThreadGroup>(meeting, rank));
    }
  }
  return {replicas.begin(), replicas.end()};
}

}  // namespace bnpass::collective
