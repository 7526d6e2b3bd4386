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

  /// Calls add(element, length, sums, anew) for the runs of the first channel, and writes their totals.
  template <class F>
  void sums(const Kernels& kernels, double* a, double* b, const F& add) const {
    Lanes lanes_of;
    bool anew = true;
    forwards([&](size_t first, size_t length) {
      add(first, length, lanes_of.values, anew);
      anew = false;
    });
    kernels.run_totals(lanes_of.values, tile_.channels, a, b);
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
  template <class F>
  void run(size_t row, const F& body) const {
    const size_t inner = cut_.view.inner, before = row % cut_.parts * cut_.length;
    const size_t first = cut_.start(tile_.group, row / cut_.parts) + tile_.channel * inner;
    body(first + before, std::min(cut_.length, inner - before));
  }

  const Cut& cut_;
  const Tile& tile_;
};

}  // namespace bnpass::cpu
