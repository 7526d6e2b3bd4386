// Sweeps over tiles whose channels lie side by side in short rows: a column for every element of a row, or of several
// rows taken as one. Vectors per channel are spread over the columns, and sums of columns gathered.
#pragma once

#include <algorithm>
#include <cstddef>

#include "cpu/cut.h"
#include "cpu/kernels.h"

namespace bnpass::cpu {

class RowSweep {
 public:
  RowSweep(const Cut& cut, const Tile& tile)
      : cut_(cut), tile_(tile), narrow_(tile.channels * cut.view.inner), columns_(narrow_ * cut.wide) {}

  /// A vector over the columns.
  struct Columns {
    alignas(64) double values[lanes + max_columns + lanes];
  };

  void clear(Columns& columns) const { std::fill_n(columns.values, padded(), 0.0); }

  /// Returns where the vector begins; behind its end it begins again. If the first column is written so many elements
  /// behind an address where lanes are aligned, lanes that are aligned there are aligned in the vector too.
  const double* spread(const double* channels, Columns& columns, size_t behind = 0) const {
    double* const begin = columns.values + behind % lanes;
    double* to = begin;
    for (size_t w = 0; w < cut_.wide; ++w) {
      for (size_t c = 0; c < tile_.channels; ++c) to = std::fill_n(to, cut_.view.inner, channels[c]);
    }
    for (; to < begin + padded(); ++to) *to = *(to - columns_);
    return begin;
  }

  void gather(const Columns& columns, double* channels) const {
    std::fill_n(channels, tile_.channels, 0.0);
    const double* from = columns.values;
    for (size_t w = 0; w < cut_.wide; ++w) {
      for (size_t c = 0; c < tile_.channels; ++c) {
        for (size_t i = 0; i < cut_.view.inner; ++i) channels[c] += *from++;
      }
    }
  }

  /// Calls body(element, rows, pitch, columns) for all rows, from the first to the last.
  template <class F>
  void forwards(const F& body) const {
    for (size_t row = tile_.from, next; row < tile_.to; row = next) {
      next = std::min(tile_.to, (row / per() + 1) * per());
      const size_t whole = (next - row) / cut_.wide, rest = (next - row) % cut_.wide;
      if (whole > 0) body(start(row), whole, pitch(), columns_);
      if (rest > 0) body(start(row + whole * cut_.wide), 1, pitch(), rest * narrow_);
    }
  }

  /// The same from the last to the first, a few rows at a time.
  template <class F>
  void backwards(const F& body) const {
    for (size_t row = tile_.to, first; row > tile_.from; row = first) {
      first = std::max(tile_.from, (row - 1) / per() * per());
      const size_t rest = (row - first) % cut_.wide;
      if (rest > 0) body(start(row - rest), 1, pitch(), rest * narrow_);
      for (size_t left = (row - first) / cut_.wide; left > 0;) {
        const size_t taken = std::min(left, rows_at_once());
        left -= taken;
        body(start(first + left * cut_.wide), taken, pitch(), columns_);
      }
    }
  }

  /// The first element of the first row.
  size_t first() const { return start(tile_.from); }

 private:
  size_t padded() const { return (columns_ + lanes - 1) / lanes * lanes + lanes; }
  size_t per() const { return cut_.view.per; }
  size_t pitch() const { return cut_.view.channels * cut_.view.inner * cut_.wide; }
  size_t start(size_t row) const { return cut_.start(tile_.group, row) + tile_.channel * cut_.view.inner; }
  /// As many as the prefetcher gets going on.
  size_t rows_at_once() const { return std::max<size_t>(1, 32768 / columns_); }

  const Cut& cut_;
  const Tile& tile_;
  size_t narrow_;   ///< Elements of a tile's part of a row.
  size_t columns_;  ///< The same of all the rows that are taken as one.
};

}  // namespace bnpass::cpu
