// Replicas that are threads: what they sum, what they refuse, and that nobody waits for ever. Made to run under
// ThreadSanitizer, AddressSanitizer and UndefinedBehaviorSanitizer.
//
//   group_check [ROUNDS [SEED]]    exits with 0 if all holds; prints what does not
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "collective/all_reduce.h"
#include "collective/host_group.h"
#include "collective/threads.h"
#include "core/error.h"

namespace {

using namespace bnpass;
using namespace bnpass::collective;

std::atomic<int> faults{0};

void check(bool holds, const std::string& what) {
  if (holds) return;
  ++faults;
  std::fprintf(stderr, "group_check: not so: %s\n", what.c_str());
}

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

Call sum_of(size_t length, int64_t id = 0) {
  Call call;
  call.collective_id = id;
  call.length = length;
  call.node = "node 'n" + std::to_string(id) + "'";
  return call;
}

/// Returns what a replica threw, "" if nothing.
template <class F>
std::string error_of(const F& body) {
  try {
    body();
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

using Body = std::function<void(HostGroup&, int)>;

std::shared_ptr<HostGroup> group_of(const std::shared_ptr<Groups>& groups, const std::string& name = kWorld) {
  return std::dynamic_pointer_cast<HostGroup>(groups->find(name));
}

/// Runs a body on every replica of a new world; returns what each threw. A replica leaves at the end of its body.
std::vector<std::string> replicas(int size, Deadline deadline, const Body& body) {
  auto groups = thread_groups(size, deadline, {});
  std::vector<std::string> errors(groups.size());
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < groups.size(); ++rank) {
    threads.emplace_back([&, rank] {
      const std::shared_ptr<Groups> mine = std::move(groups[rank]);
      errors[rank] = error_of([&] { body(*group_of(mine), static_cast<int>(rank)); });
    });
  }
  for (std::thread& thread : threads) thread.join();
  return errors;
}

void all_threw(const std::vector<std::string>& errors, const std::string& sentence) {
  for (const std::string& error : errors) check(error == sentence, "'" + error + "' is '" + sentence + "'");
}

/// The value of replica `rank` at (round, i); sums of it depend on their order.
double term(int rank, int round, size_t i) {
  return std::sin(1 + rank * 17.3 + round * 0.7 + static_cast<double>(i)) * 1e3;
}

void sums_are_those_in_rank_order(int size, int rounds) {
  const auto errors = replicas(size, Deadline(60), [&](HostGroup& group, int rank) {
    for (int round = 0; round < rounds; ++round) {
      std::vector<double> values(static_cast<size_t>(round % 5) * 33);
      for (size_t i = 0; i < values.size(); ++i) values[i] = term(rank, round, i);
      group.all_reduce(sum_of(values.size(), round), values.data());
      for (size_t i = 0; i < values.size(); ++i) {
        double expected = term(0, round, i);
        for (int other = 1; other < size; ++other) expected += term(other, round, i);
        check(values[i] == expected, "a sum of " + std::to_string(size) + " replicas in rank order");
      }
    }
  });
  all_threw(errors, "");
}

void int64_wraps_and_has_extrema() {
  all_threw(replicas(3, Deadline(60),
                     [](HostGroup& group, int rank) {
                       Call call = sum_of(1);
                       call.wire = Wire::i64;
                       int64_t value = rank == 0 ? INT64_MAX : 1;
                       group.all_reduce(call, &value);
                       check(value == INT64_MIN + 1, "int64 wraps around");
                       call.reduction = Reduction::max;
                       value = rank;
                       group.all_reduce(call, &value);
                       check(value == 2, "maximum");
                       call.reduction = Reduction::min;
                       value = -rank;
                       group.all_reduce(call, &value);
                       check(value == -2, "minimum");
                     }),
            "");
}

double reduced(HostGroup& group, const std::string& reduction, double value) {
  double result = 0;
  all_reduce(group, sum_of(1), Element::f64, reduction, &value, &result, 1);
  return result;
}

void nan_wins_and_zeros_have_signs() {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  all_threw(replicas(2, Deadline(60),
                     [nan](HostGroup& group, int rank) {
                       for (const char* reduction : {"sum", "mean", "max", "min"}) {
                         check(std::isnan(reduced(group, reduction, rank == 0 ? nan : 1.0)),
                               std::string("NaN in ") + reduction);
                         check(std::isnan(reduced(group, reduction, rank == 0 ? -INFINITY : -nan)),
                               std::string("-NaN in ") + reduction);
                       }
                       check(!std::signbit(reduced(group, "max", rank == 0 ? -0.0 : 0.0)), "max(-0, +0) = +0");
                       check(std::signbit(reduced(group, "min", rank == 0 ? -0.0 : 0.0)), "min(-0, +0) = -0");
                       check(reduced(group, "max", rank == 0 ? -1e-310 : -5.0) == -1e-310, "a subnormal maximum");
                       check(reduced(group, "min", rank == 0 ? -INFINITY : -1e308) == -INFINITY, "an infinite minimum");
                       check(reduced(group, "mean", rank) == 0.5, "mean");
                     }),
            "");
}

void halves_are_rounded_once() {
  // 1 + 2^-11 + 2^-12 summed in float16 one by one stays at 1; rounded once it is 1 + 2^-10.
  const uint16_t parts[3] = {0x3c00, 0x1000, 0x0c00};
  all_threw(replicas(3, Deadline(60),
                     [&parts](HostGroup& group, int rank) {
                       uint16_t value = parts[rank];
                       all_reduce(group, sum_of(1), Element::f16, "sum", &value, &value, 1);
                       check(value == 0x3c01, "float16 is rounded once");
                     }),
            "");
}

void int64_has_no_mean() {
  all_threw(replicas(2, Deadline(60),
                     [](HostGroup& group, int) {
                       int64_t value = 1;
                       all_reduce(group, sum_of(1), Element::i64, "mean", &value, &value, 1);
                     }),
            "replica 0 failed: the mean of tensor(int64) is not defined");
}

void disagreement_is_one_sentence_for_all() {
  const auto lengths = replicas(3, Deadline(60), [](HostGroup& group, int rank) {
    std::vector<double> values(200);
    group.all_reduce(sum_of(rank == 2 ? 65 : 129, 3), values.data());
  });
  all_threw(lengths,
            "replicas disagree about collective 3: replica 0 sends 129 elements of double (node 'n3'), "
            "replica 2 sends 65 elements of double (node 'n3')");
  const auto order = replicas(2, Deadline(60), [](HostGroup& group, int rank) {
    double value = 0;
    group.all_reduce(sum_of(1, 3 + rank), &value);
  });
  all_threw(order,
            "replicas disagree about the order of collectives: replica 0 is at collective 3 (node 'n3'), "
            "replica 1 at collective 4 (node 'n4')");
  const auto purposes = replicas(2, Deadline(60), [](HostGroup& group, int rank) {
    double value = 0;
    rank == 0 ? group.agree(sum_of(1)) : group.all_reduce(sum_of(1), &value);
  });
  all_threw(purposes,
            "replicas disagree about collective 0: replica 0 and replica 1 move the payload in different ways");
}

void failure_is_told_to_all_and_stays() {
  all_threw(replicas(3, Deadline(60),
                     [](HostGroup& group, int rank) {
                       const std::string first = error_of([&] {
                         double value = 0;
                         if (rank == 1) group.fail(sum_of(1), "X has 3 channels, not 4");
                         group.all_reduce(sum_of(1), &value);
                       });
                       check(first == "replica 1 failed: X has 3 channels, not 4", first);
                       const std::string second = error_of([&] { group.agree(sum_of(1)); });
                       check(second == "this group failed before: " + first, second);
                     }),
            "");
}

void who_is_late_is_named_in_time() {
  const auto begin = Clock::now();
  const auto errors = replicas(3, Deadline(0.2), [](HostGroup& group, int rank) {
    if (rank == 1) std::this_thread::sleep_for(std::chrono::milliseconds(600));
    group.agree(sum_of(1, 7));
  });
  const std::string late = "replica 1 of group 'world' did not come to collective 7 of node 'n7' within 0.2 s";
  check(errors[0] == late && errors[2] == late, errors[0]);
  check(errors[1] == "this group failed before: " + late, errors[1]);
  check(seconds_since(begin) < 1.6, "no one waits much longer than the deadline");
}

void who_leaves_is_not_waited_for() {
  const auto begin = Clock::now();
  const auto errors = replicas(2, Deadline(60), [](HostGroup& group, int rank) {
    group.agree(sum_of(1, 0));
    if (rank == 0) group.agree(sum_of(1, 1));
  });
  check(errors[0].find("replica 1 of group 'world' has left") == 0, errors[0]);
  check(seconds_since(begin) < 10, "a replica that has left is not waited for");
}

void one_replica_is_one_thread_at_a_time() {
  auto groups = thread_groups(2, Deadline(0.5), {});
  const auto group = group_of(groups[0]);
  std::string errors[2];
  std::thread other([&] { errors[1] = error_of([&] { group->agree(sum_of(1)); }); });
  errors[0] = error_of([&] { group->agree(sum_of(1)); });
  other.join();
  const std::string twice = "two threads of replica 0 use group 'world' at once: collective 0 of node 'n0'";
  check((errors[0] == twice) != (errors[1] == twice), errors[0] + " / " + errors[1]);
}

void sub_groups_work_side_by_side() {
  const std::vector<SubGroup> sub_groups{{"even", {2, 0}}, {"odd", {1, 3}}};
  const auto groups = thread_groups(4, Deadline(60), sub_groups);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 4; ++rank) {
    threads.emplace_back([&groups, rank] {
      const auto& mine = groups[static_cast<size_t>(rank)];
      const auto part = group_of(mine, rank % 2 == 0 ? "even" : "odd");
      check(rank != 2 || part->rank() == 0, "members are numbered in their order");
      for (int round = 0; round < 100; ++round) {
        double value = rank;
        part->all_reduce(sum_of(1, round), &value);
        check(value == (rank % 2 == 0 ? 2 : 4), "the sum of a sub-group");
        group_of(mine)->all_reduce(sum_of(1, round), &value);
        check(value == 12, "the sum of the world");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::string stranger = error_of([&] { groups[0]->find("odd"); });
  check(stranger == "this replica is not in group 'odd'; its groups are 'even', 'world'", stranger);
  const std::string unknown = error_of([&] { groups[0]->find("all"); });
  check(unknown == "there is no group 'all'; its groups are 'even', 'world'", unknown);
  check(groups[0]->find("")->size() == 1, "the empty name is this replica alone");
}

void groups_that_cannot_be() {
  const auto refused = [](int size, double deadline, const std::vector<SubGroup>& sub_groups) {
    return !error_of([&] { thread_groups(size, Deadline(deadline), sub_groups); }).empty();
  };
  const auto named = [](const char* name, std::vector<int> members) {
    std::vector<SubGroup> one(1);
    one[0].name = name;
    one[0].members = std::move(members);
    return one;
  };
  check(refused(0, 1, {}), "no replica");
  check(refused(2, 0, {}) && refused(2, std::nan(""), {}), "no deadline");
  check(refused(2, 1, named("", {0})) && refused(2, 1, named("world", {0})), "reserved names");
  check(refused(2, 1, named("a", {})), "no members");
  check(refused(2, 1, named("a", {2})) && refused(2, 1, named("a", {-1})), "members that there are not");
  check(refused(2, 1, named("a", {0, 0})), "a member twice");
  std::vector<SubGroup> twice = named("a", {0});
  twice.push_back(twice[0]);
  check(refused(2, 1, twice), "one name for two groups");
}

enum class Fault { leave, fail, other_length, other_id, late, kinds };

/// One of the replicas does something wrong at some round. All that came to a sum before have the right one; the others
/// throw in time.
void random_fault(unsigned seed) {
  std::mt19937 random(seed);
  const int size = 2 + static_cast<int>(random() % 3);
  const int culprit = static_cast<int>(random() % static_cast<unsigned>(size));
  const int moment = static_cast<int>(random() % 20);
  const auto fault = static_cast<Fault>(random() % static_cast<unsigned>(Fault::kinds));
  const auto begin = Clock::now();
  std::atomic<int> finished{0};
  replicas(size, Deadline(0.3), [&](HostGroup& group, int rank) {
    for (int round = 0; round < 40; ++round) {
      std::vector<double> values(8, rank);
      Call call = sum_of(values.size(), round);
      if (rank == culprit && round == moment) {
        if (fault == Fault::leave) return;
        if (fault == Fault::fail) group.fail(call, "a fault");
        if (fault == Fault::other_length) call.length = 7;
        if (fault == Fault::other_id) ++call.collective_id;
        if (fault == Fault::late) std::this_thread::sleep_for(std::chrono::milliseconds(500));
      }
      group.all_reduce(call, values.data());
      for (const double value : values) check(value == size * (size - 1) / 2, "a sum beside a fault");
    }
    ++finished;
  });
  const std::string run = "run " + std::to_string(seed);
  check(finished == 0, run + ": nobody goes on without the others");
  check(seconds_since(begin) < 1.8, run + ": nobody waits much longer than the deadline");
}

}  // namespace

int main(int count, char** words) {
  const int rounds = count > 1 ? std::atoi(words[1]) : 200;
  const unsigned seed = count > 2 ? static_cast<unsigned>(std::atoi(words[2])) : 1;
  for (const int size : {1, 2, 3, 4, 8}) sums_are_those_in_rank_order(size, rounds);
  int64_wraps_and_has_extrema();
  nan_wins_and_zeros_have_signs();
  halves_are_rounded_once();
  int64_has_no_mean();
  disagreement_is_one_sentence_for_all();
  failure_is_told_to_all_and_stays();
  who_is_late_is_named_in_time();
  who_leaves_is_not_waited_for();
  one_replica_is_one_thread_at_a_time();
  sub_groups_work_side_by_side();
  groups_that_cannot_be();
  for (unsigned run = 0; run < 40; ++run) random_fault(seed + run);
  std::printf("group_check: %s\n", faults == 0 ? "all holds" : "there are faults");
  return faults == 0 ? 0 : 1;
}
