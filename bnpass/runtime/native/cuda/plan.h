// How a tensor is cut into blocks of threads. Host code that knows no CUDA, so it is tested without a GPU.
//
// A block has 256 threads: `slots` channels (or vectors of channels) times `positions`. The positions of one block run
// through one of `splits` parts of what belongs to its channels and ghost batch, one vector at a time. Splits exist so
// that a few channels still fill the device; their partial sums are merged in the order of the splits, so a result
// depends on the shape and the device alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/element.h"
#include "core/geometry.h"

namespace bnpass::cuda {

constexpr int kThreads = 256;
constexpr int kVectorBytes = 16;
constexpr int kWidth = 64;         ///< Most channels of a block.
constexpr int kUnroll = 4;         ///< Vectors in flight per thread.
constexpr int64_t kSplits = 256;   ///< Most splits: what the last block of a channel has to merge.
constexpr int64_t kBlocksPerProcessor = 16;

/// The n-th of the vectors that belong to a channel and ghost batch: n = row·length + column, at
///   base + row·row_stride + (row / period)·jump + column·column_stride      (elements)
struct Walk {
  int64_t vectors = 0;   ///< How many there are.
  int64_t length = 1;    ///< Vectors of a row.
  int64_t row_stride = 0;
  int64_t column_stride = 0;
  int64_t period = 1;
  int64_t jump = 0;      ///< 0: the term is not looked at.
  int64_t group_stride = 0;  ///< From a ghost batch to the next.
  int64_t slot_stride = 0;   ///< From a slot to the next.
};

struct Plan {
  bool across = false;    ///< The elements of a vector belong to different channels (channels last).
  bool slots_first = false;  ///< Neighbouring threads have neighbouring slots, not positions.
  int vector = 1;         ///< Elements of a vector.
  int slots = 1;          ///< Power of two.
  int positions = kThreads;  ///< slots·positions = 256.
  int64_t groups = 1;
  int64_t channels = 1;
  int64_t tiles = 1;      ///< Blocks side by side over the channels.
  int64_t splits = 1;
  Walk walk;

  int lanes() const { return across ? vector : 1; }          ///< Channels of a slot.
  int width() const { return slots * lanes(); }              ///< Channels of a block.
  int64_t share() const { return across ? 1 : vector; }      ///< Elements of a channel in a vector.
  int64_t blocks() const { return splits * groups * tiles; }
  size_t partial_bytes() const { return static_cast<size_t>(splits * groups * channels) * 16; }
  size_t counter_bytes() const { return static_cast<size_t>(groups * tiles) * 4; }
};

/// The part of a Plan that kernels need, and quotients that they would have to divide for.
struct Layout {
  Walk walk;
  int64_t channels, groups, tiles, splits;
  int slots, positions;
  bool slots_first;
  int64_t split_vectors, split_rest;   ///< vectors / splits and vectors % splits.
  int64_t row_step, column_step;       ///< positions / length and positions % length.
};

inline Layout layout_of(const Plan& plan) {
  const Walk& walk = plan.walk;
  return {walk,          plan.channels, plan.groups,      plan.tiles,
          plan.splits,   plan.slots,    plan.positions,   plan.slots_first,
          walk.vectors / plan.splits,   walk.vectors % plan.splits,
          plan.positions / walk.length, plan.positions % walk.length};
}

/// Returns the plan for a tensor that is not empty.
/// addresses: the bitwise or of the addresses of all tensors: vectors need their alignment. processors: of the device.
/// Throws Error if the tensor needs more blocks than a grid can have.
Plan plan(const Geometry& geometry, Element element, uintptr_t addresses, int processors);

/// Most bytes of counters, and of partial sums, over all alignments; 0 where there are no elements.
struct Needs {
  size_t counters = 0;
  size_t partials = 0;
};
Needs needs(const Geometry& geometry, Element element, int processors);

}  // namespace bnpass::cuda
