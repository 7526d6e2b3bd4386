// The way of one thread through the vectors of its channel and ghost batch (see plan.h).
#pragma once

#include <cuda_runtime.h>

#include "cuda/plan.h"

namespace bnpass::cuda {

/// The first vector of a split; splits differ by one vector at most.
__device__ inline int64_t split_begin(const Layout& layout, int64_t split) {
  return split * layout.split_vectors + (split < layout.split_rest ? split : layout.split_rest);
}

/// How many vectors a split has.
__device__ inline int64_t split_size(const Layout& layout, int64_t split) {
  return layout.split_vectors + (split < layout.split_rest ? 1 : 0);
}

/// Which channels, ghost batch and split a thread works on. Blocks of one split follow one another, so that together
/// they read memory from its beginning to its end; `backwards` from its end to its beginning, where the caches hold
/// what was read last.
struct Place {
  int64_t tile, group, split, slot_channel;
  int slot, position;

  __device__ Place(const Layout& layout, int lanes, bool backwards) {
    int64_t block = backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    tile = block % layout.tiles;
    block /= layout.tiles;
    group = block % layout.groups;
    split = block / layout.groups;
    const int thread = static_cast<int>(threadIdx.x);
    slot = layout.slots_first ? thread % layout.slots : thread / layout.positions;
    position = layout.slots_first ? thread / layout.slots : thread % layout.positions;
    slot_channel = (tile * layout.slots + slot) * lanes;
  }
};

/// Runs through the vectors [begin + position, end) in steps of `positions`; moving on costs no division.
class Cursor {
 public:
  __device__ Cursor(const Layout& layout, const Place& place)
      : walk_(layout.walk),
        next_(split_begin(layout, place.split) + place.position),
        end_(split_begin(layout, place.split + 1)),
        step_(layout.positions),
        row_(next_ / walk_.length),
        column_(next_ - row_ * walk_.length),
        row_step_(layout.row_step),
        column_step_(layout.column_step),
        base_(place.group * walk_.group_stride + (place.tile * layout.slots + place.slot) * walk_.slot_stride) {}

  /// Whether there are `more` further vectors.
  __device__ bool has(int more) const { return next_ + (more - 1) * step_ < end_; }

  /// How many vectors are left.
  __device__ int64_t left() const { return next_ < end_ ? (end_ - next_ + step_ - 1) / step_ : 0; }

  /// The offset of the next vector, in elements; moves on.
  __device__ int64_t take() {
    int64_t offset = base_ + row_ * walk_.row_stride + column_ * walk_.column_stride;
    if (walk_.jump != 0) offset += row_ / walk_.period * walk_.jump;
    next_ += step_;
    row_ += row_step_;
    column_ += column_step_;
    if (column_ >= walk_.length) {
      column_ -= walk_.length;
      ++row_;
    }
    return offset;
  }

 private:
  const Walk& walk_;
  int64_t next_;
  const int64_t end_, step_;
  int64_t row_, column_;
  const int64_t row_step_, column_step_, base_;
};

}  // namespace bnpass::cuda
