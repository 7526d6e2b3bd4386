// Latency of Group::all_reduce over MPI above the bare MPI_Allreduce of the same bytes: short bursts of calls in turns.
//
//   mpiexec -n 2 group_latency LIBRARY LENGTH...    prints one line of JSON per length: medians in microseconds
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "collective/mpi_groups.h"
#include "collective/mpi_library.h"
#include "core/error.h"

namespace {

using namespace bnpass::collective;

constexpr int kRounds = 300;
constexpr int kWarmUp = 20;
constexpr int kBurst = 20;

using Allreduce = int (*)(const void*, void*, int, MpiHandle, MpiHandle, MpiHandle);
using Barrier = int (*)(MpiHandle);

struct Bare {
  explicit Bare(const MpiLibrary& mpi)
      : constant(mpi.constant()),
        all_reduce(reinterpret_cast<Allreduce>(find(mpi, "MPI_Allreduce"))),
        barrier(reinterpret_cast<Barrier>(find(mpi, "MPI_Barrier"))) {}

  static void* find(const MpiLibrary& mpi, const char* name) {
    void* handle = dlopen(mpi.path().c_str(), RTLD_LAZY | RTLD_NOLOAD);
    return dlsym(handle, name);
  }

  const MpiConstants constant;
  const Allreduce all_reduce;
  const Barrier barrier;
};

/// Returns what one call of a burst takes; every call waits for all replicas, so their clocks need not agree.
template <class F>
double microseconds(const Bare& bare, const F& call) {
  bare.barrier(bare.constant.comm_world);
  const auto begin = Clock::now();
  for (int i = 0; i < kBurst; ++i) call();
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count() / kBurst;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

void measure(Group& group, const Bare& bare, size_t length) {
  std::vector<double> data(length, 0.0);
  std::vector<double> of_bare;
  std::vector<double> of_group;
  Call call;
  call.length = length;
  call.node = "group_latency";
  for (int round = -kWarmUp; round < kRounds; ++round) {
    const double alone = microseconds(bare, [&] {
      bare.all_reduce(bare.constant.in_place, data.data(), static_cast<int>(length), bare.constant.float64,
                      bare.constant.sum, bare.constant.comm_world);
    });
    call.collective_id = round;
    const double ours = microseconds(bare, [&] { group.all_reduce(call, data.data()); });
    if (round < 0) continue;
    of_bare.push_back(alone);
    of_group.push_back(ours);
  }
  if (group.rank() == 0) {
    std::printf("{\"doubles\": %zu, \"replicas\": %d, \"bare\": %.2f, \"group\": %.2f}\n", length, group.size(),
                median(of_bare), median(of_group));
    std::fflush(stdout);
  }
}

}  // namespace

int main(int count, char** words) {
  try {
    MpiOptions options;
    if (count > 1) options.libraries = {words[1]};
    const auto groups = mpi_groups(options, {});
    const auto world = groups->find(kWorld);
    const Bare bare(*MpiLibrary::if_loaded());
    if (world->rank() == 0) std::printf("{\"mpi\": \"%s\"}\n", mpi_description().c_str());
    for (int i = 2; i < count; ++i) measure(*world, bare, std::strtoul(words[i], nullptr, 10));
  } catch (const bnpass::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    mpi_end(true);
    return 1;
  }
  mpi_end(false);
  return 0;
}
