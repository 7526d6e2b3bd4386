// Sweeps over tiles whose channels have runs of many elements, one behind the other.
#pragma once

#include <algorithm>
#include <cstddef>

#include "cpu/cut.h"
#include "cpu/kernels.h"

namespace bnpass::cpu {

class RunSweep {
 public:
  RunSweep(const Cut& cut, const Tile& tile) : cut_(cut), tile_(tile) {}

  /// The sums of all channels of a tile, lane by lane.
  struct Lanes {
    alignas(64) double values[max_run_channels * 2 * lanes];
  };

  void clear(Lanes& sums) const { std::fill_n(sums.values, tile_.channels * 2 * lanes, 0.0); }

  void gather(const Lanes& sums, double* a, double* b) const {
    const double* from = sums.values;
    for (size_t c = 0; c < tile_.channels; ++c, from += 2 * lanes) {
      a[c] = total(from);
      b[c] = total(from + lanes);
    }
  }

  /// Calls body(element, length) for the runs of the first channel, from the first to the last.
  template <class F>
  void forwards(const F& body) const {
    for (size_t row = tile_.from; row < tile_.to; ++row) run(row, body);
  }

  template <class F>
  void backwards(const F& body) const {
    for (size_t row = tile_.to; row > tile_.from; --row) run(row - 1, body);
  }

 private:
  static double total(const double* sums) {
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
  }

  template <class F>
  void run(size_t row, const F& body) const {
    const size_t inner = cut_.view.inner, before = row % cut_.parts * cut_.length;
    if (before >= inner) return;
    const size_t first = cut_.start(tile_.group, row / cut_.parts) + tile_.channel * inner;
    body(first + before, std::min(cut_.length, inner - before));
  }

  const Cut& cut_;
  const Tile& tile_;
};

}  // namespace bnpass::cpu
