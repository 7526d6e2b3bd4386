// From the sums of one block to those of a whole channel: the last block of a channel merges what all splits found.
#pragma once

#include <cuda_runtime.h>

#include "cuda/reduce.h"
#include "cuda/walk.h"

namespace bnpass::cuda {

/// Merges the partial sums of all splits; found[i] is what belongs to channel i of the block.
/// Rule::term(partial, elements, pivot) is summed up, Rule::result(sum, elements, pivot) is what is found; the pivot is
/// the first half of the first partial.
template <class Rule>
__device__ void merge(const Layout& layout, const Place& place, int width, int64_t share, const Pair* pairs,
                      Pair (&buffer)[1][kThreads], Pair* found) {
  const int thread = static_cast<int>(threadIdx.x);
  const int column = thread % width, fold = thread / width, folds = kThreads / width;
  const int64_t channel = place.tile * width + column;
  const int64_t step = layout.groups * layout.channels;
  const Pair* first = pairs + place.group * layout.channels + channel;
  Pair sum{0, 0};
  double pivot = 0;
  if (channel < layout.channels) {
    pivot = load_partial(first).a;
    for (int64_t split = fold; split < layout.splits; split += folds) {
      const auto elements = static_cast<double>(split_size(layout, split) * share);
      sum = sum + Rule::term(load_partial(first + split * step), elements, pivot);
    }
  }
  buffer[0][fold * width + column] = sum;
  sum_positions<1>(buffer, fold, column, folds, width);
  if (fold == 0) {
    found[column] = Rule::result(buffer[0][column], static_cast<double>(layout.walk.vectors * share), pivot);
  }
  __syncthreads();
}

/// Calls finish(channel, sums) once for each channel and ghost batch, in one thread, when the sums of all its blocks
/// are there. found: the sums of this block, [width], written by some of its threads just now.
template <class Rule, class Finish>
__device__ void conclude(const Layout& layout, const Place& place, int width, int64_t share, const Partials& partials,
                         Pair (&buffer)[1][kThreads], Pair* found, const Finish& finish) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t channel = place.tile * width + thread;
  const bool has_channel = thread < width && channel < layout.channels;
  __syncthreads();
  if (layout.splits > 1) {
    const int64_t row = place.split * layout.groups + place.group;
    if (has_channel) store_partial(partials.pairs + row * layout.channels + channel, found[thread]);
    unsigned* counter = partials.counters + place.group * layout.tiles + place.tile;
    if (!last_block(counter, static_cast<unsigned>(layout.splits))) return;
    merge<Rule>(layout, place, width, share, partials.pairs, buffer, found);
  }
  if (has_channel) finish(channel, found[thread]);
}

}  // namespace bnpass::cuda
