#include "collective/mpi_group.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "collective/host_reduce.h"
#include "collective/mpi_wait.h"
#include "core/error.h"

namespace bnpass::collective {
namespace {

// MPI counts with int; larger payloads go in parts.
constexpr size_t kLargestPart = size_t{1} << 30;

// Replicas that have just found out that they disagree are all there: their accounts need no deadline of their own.
constexpr Deadline kForAccounts{0.5};

}  // namespace

std::atomic<bool> unfinished{false};

Clock::time_point after(Deadline deadline) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(deadline);
}

/// Memory that MPI reads and writes.
struct MpiGroup::Buffers {
  Header header{};
  std::vector<int64_t> accounts;
  std::unique_ptr<char[]> payload;
  size_t capacity = 0;

  /// Returns whether there is room for a payload now.
  bool reserve(size_t bytes) {
    if (bytes <= capacity) return true;
    capacity = 0;
    payload.reset(new (std::nothrow) char[bytes]);
    if (payload) capacity = bytes;
    return payload != nullptr;
  }
};

MpiGroup::MpiGroup(MpiLibrary& mpi, MpiHandle communicator, std::string name, Deadline deadline)
    : mpi_(mpi),
      communicator_(communicator),
      name_(std::move(name)),
      deadline_(deadline),
      buffers_(std::make_unique<Buffers>()) {
  mpi_.check(mpi_.call().Comm_set_errhandler(communicator_, mpi_.constant().errors_return), "MPI_Comm_set_errhandler");
  mpi_.check(mpi_.call().Comm_size(communicator_, &size_), "MPI_Comm_size");
  mpi_.check(mpi_.call().Comm_rank(communicator_, &rank_), "MPI_Comm_rank");
}

MpiGroup::~MpiGroup() {
  if (failure_) return;  // MPI may still use the communicator
  try {
    mpi_.check_usable();
    const std::lock_guard<std::mutex> lock(mpi_.mutex());
    mpi_.call().Comm_free(&communicator_);
  } catch (const Error&) {  // MPI has ended, or this is not its thread: it keeps the communicator
  }
}

void MpiGroup::all_reduce(const Call& call, void* data) { run(call, Purpose::payload, data, ""); }

void MpiGroup::agree(const Call& call) { run(call, Purpose::agreement, nullptr, ""); }

void MpiGroup::fail(const Call& call, const std::string& failure) {
  run(call, Purpose::failure, nullptr, failure);
  throw Error(failure);  // not reached: a header with a failure never agrees
}

void MpiGroup::break_off(const std::string& sentence) {
  const std::lock_guard<std::mutex> lock(in_use_);
  if (!failure_) failure_ = sentence;
}

void MpiGroup::run(const Call& call, Purpose purpose, void* data, const std::string& failure) {
  const std::unique_lock<std::mutex> lock(in_use_, std::try_to_lock);
  if (!lock.owns_lock()) {
    throw Error(
        "two threads of replica " + std::to_string(rank_) + " use group '" + name_ + "' at once: " + name_of(call),
        Code::runtime);
  }
  if (failure_) throw Error("this group failed before: " + *failure_, Code::runtime);
  mpi_.check_usable();
  try {
    const auto end = after(deadline_);
    const bool payload = purpose == Purpose::payload && call.length > 0;
    // Once the header is agreed on, nothing but MPI may fail: the others are in the payload then.
    if (payload && !buffers_->reserve(call.length * size_of(call.wire))) {
      agree_on_header(call, Purpose::failure, "there is no memory for the message of " + name_of(call), end);
    }
    agree_on_header(call, purpose, failure, end);
    if (payload) reduce_payload(call, data, end);
  } catch (const std::exception& error) {
    failure_ = error.what();
    throw;
  }
}

void MpiGroup::agree_on_header(const Call& call, Purpose purpose, const std::string& failure, Clock::time_point end) {
  Header& header = buffers_->header;
  header = header_of(call, purpose);
  reduce_in_place(call, header.data(), header.size(), mpi_.constant().int64, mpi_.constant().max, end);
  if (agrees(header)) return;
  throw Error(explanation(call, purpose, failure, std::max(end, after(kForAccounts))), Code::runtime);
}

std::string MpiGroup::explanation(const Call& call, Purpose purpose, const std::string& failure,
                                  Clock::time_point end) {
  const bool failed = buffers_->header[kFailure] != 0;
  const auto replicas = static_cast<size_t>(size_);
  std::vector<int64_t>& words = buffers_->accounts;
  words.assign(replicas * kAccountWords, absent());
  const Account own = account_of(call, purpose, failure);
  std::copy(own.begin(), own.end(), words.begin() + rank_ * static_cast<ptrdiff_t>(kAccountWords));
  try {
    reduce_in_place(call, words.data(), words.size(), mpi_.constant().int64, mpi_.constant().max, end);
  } catch (const Error&) {
    return (failed ? "a replica failed in " : "replicas disagree about ") + name_of(call) +
           ", and their accounts did not arrive";
  }
  std::vector<Account> accounts(replicas);
  std::memcpy(accounts.data(), words.data(), words.size() * sizeof(int64_t));
  return sentence_of(accounts);
}

void MpiGroup::reduce_payload(const Call& call, void* data, Clock::time_point end) {
  const size_t bytes = call.length * size_of(call.wire);
  char* payload = buffers_->payload.get();
  std::memcpy(payload, data, bytes);
  for (size_t first = 0; first < call.length; first += kLargestPart) {
    const size_t count = std::min(kLargestPart, call.length - first);
    reduce_in_place(call, payload + first * size_of(call.wire), count, type_of(call.wire), operation_of(call.reduction),
                    end);
  }
  copy_canonical(call, payload, data);
}

/// Buffers that MPI has not given back are left to it for good.
void MpiGroup::reduce_in_place(const Call& call, void* words, size_t count, MpiHandle type, MpiHandle operation,
                               Clock::time_point end) {
  MpiHandle request = 0;
  bool done = false;
  try {
    start(words, count, type, operation, request);
    done = wait_until(mpi_, request, end);
  } catch (const Error&) {
    abandon();
    throw;
  }
  if (done) return;
  abandon();
  throw Error(name_of(call) + ": not all " + std::to_string(size_) + " replicas of group '" + name_ + "' came within " +
                  seconds_text(deadline_.count()),
              Code::runtime);
}

void MpiGroup::start(void* words, size_t count, MpiHandle type, MpiHandle operation, MpiHandle& request) {
  const std::lock_guard<std::mutex> lock(mpi_.mutex());
  mpi_.check(mpi_.call().Iallreduce(mpi_.constant().in_place, words, static_cast<int>(count), type, operation,
                                    communicator_, &request),
             "MPI_Iallreduce");
}

void MpiGroup::abandon() {
  unfinished = true;
  static_cast<void>(buffers_.release());
  buffers_ = std::make_unique<Buffers>();
}

MpiHandle MpiGroup::type_of(Wire wire) const {
  const MpiConstants& constant = mpi_.constant();
  return wire == Wire::f32 ? constant.float32 : wire == Wire::f64 ? constant.float64 : constant.int64;
}

MpiHandle MpiGroup::operation_of(Reduction reduction) const {
  const MpiConstants& constant = mpi_.constant();
  return reduction == Reduction::sum ? constant.sum : reduction == Reduction::max ? constant.max : constant.min;
}

}  // namespace bnpass::collective
