// How a tensor is cut into tiles. A cut depends on the shape and the element type alone, and with it the order of every
// sum: results are the same for any number of threads.
#pragma once

#include <cstddef>

#include "core/geometry.h"
#include "cpu/kernels.h"

namespace bnpass::cpu {

constexpr size_t max_tasks = 64;
/// Most channels of a tile that goes by runs.
constexpr size_t max_run_channels = 64;

/// A block of channels of one ghost batch, and a part of its rows. By runs, row t is the part t % parts of the inner
/// elements of the outer row t / parts.
struct Tile {
  size_t group;
  size_t channel, channels;
  size_t from, to;

  size_t rows() const { return to - from; }
};

struct Cut {
  /// The tensor as [samples, groups, per, channels, inner], with as few samples as there can be: the per rows of a
  /// sample and ghost batch lie one behind the other.
  Geometry view;
  /// Elements of a channel that lie one behind the other are few: take all channels of a row at once.
  bool by_rows = false;
  size_t wide = 1;    ///< By rows: so many rows are taken as one, for rows are short.
  size_t parts = 1;   ///< By runs: so many parts are made of inner.
  size_t length = 0;  ///< By runs: elements of such a part; the last may be shorter.
  size_t block = 1;   ///< Channels of a tile.
  size_t blocks = 0;  ///< Of a ghost batch.
  size_t chunks = 1;  ///< Parts of the rows; if 1, a tile has all that its statistics need.
  size_t tasks = 0;

  size_t rows() const { return view.samples * view.per * parts; }
  size_t tiles() const { return chunks * view.groups * blocks; }
  size_t chunk_of(size_t tile) const { return tile / (view.groups * blocks); }
  Tile tile(size_t index) const;
  /// Calls body(index) for the tiles of a task.
  template <class F>
  void each_tile(size_t task, const F& body) const {
    for (size_t i = task * tiles() / tasks; i < (task + 1) * tiles() / tasks; ++i) body(i);
  }
  /// Where the outer row begins that is number row of a ghost batch, in elements.
  size_t start(size_t group, size_t row) const {
    const size_t outer = (row / view.per * view.groups + group) * view.per + row % view.per;
    return outer * view.channels * view.inner;
  }
};

/// Cuts a tensor with elements; bytes: read per element and sweep.
Cut cut(const Geometry& geometry, size_t bytes);

}  // namespace bnpass::cpu
