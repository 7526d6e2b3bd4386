#include "collective/mpi_wait.h"

#include <sched.h>

#include <algorithm>
#include <thread>

namespace bnpass::collective {
namespace {

using std::chrono::microseconds;

// A collective of small messages takes a few microseconds when everybody is there: about this many tests.
constexpr int kSpins = 200;
// A replica that is late is late by milliseconds; the cores then belong to those that still compute.
constexpr microseconds kBeforeNaps{2000};
constexpr microseconds kFirstNap{20};
constexpr microseconds kLongestNap{500};

bool test(MpiLibrary& mpi, MpiHandle& request) {
  const std::lock_guard<std::mutex> lock(mpi.mutex());
  int done = 0;
  mpi.check(mpi.call().Test(&request, &done, mpi.constant().status_ignore), "MPI_Test");
  return done != 0;
}

}  // namespace

bool wait_until(MpiLibrary& mpi, MpiHandle& request, Clock::time_point end) {
  for (int i = 0; i < kSpins; ++i) {
    if (test(mpi, request)) return true;
  }
  const auto begin = Clock::now();
  microseconds nap = kFirstNap;
  for (;;) {
    if (test(mpi, request)) return true;
    const auto now = Clock::now();
    if (now >= end) return false;
    if (now - begin < kBeforeNaps) {
      sched_yield();
    } else {
      std::this_thread::sleep_for(std::min<Clock::duration>(nap, end - now));
      nap = std::min(nap * 2, kLongestNap);
    }
  }
}

}  // namespace bnpass::collective
