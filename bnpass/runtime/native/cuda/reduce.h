// Sums over the threads of a block, in an order that depends on the block's shape alone.
#pragma once

#include <cuda_runtime.h>

#include "cuda/arguments.h"
#include "cuda/plan.h"

namespace bnpass::cuda {

__device__ inline Pair operator+(Pair x, Pair y) { return {x.a + y.a, x.b + y.b}; }

/// Sums `lanes` rows of buffer [lanes][positions][slots] over the positions, a power of two; the sums are at position
/// 0. All threads must call it, each with its own place; what they wrote before is seen.
template <int LANES>
__device__ void sum_positions(Pair (&buffer)[LANES][kThreads], int position, int slot, int positions, int slots) {
  for (int half = positions / 2; half > 0; half /= 2) {
    __syncthreads();
    if (position < half) {
      for (int lane = 0; lane < LANES; ++lane) {
        Pair& mine = buffer[lane][position * slots + slot];
        mine = mine + buffer[lane][(position + half) * slots + slot];
      }
    }
  }
  __syncthreads();
}

/// Counts the blocks that came here; true, for all threads, in the last of `blocks`, which then sees what the others
/// wrote before. The counter is 0 before the first and after the last.
__device__ inline bool last_block(unsigned* counter, unsigned blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(counter, 1u) + 1u == blocks;
    if (last) *counter = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

/// Reads what another block wrote: not through the cache of this processor.
__device__ inline Pair load_partial(const Pair* from) {
  const double2 bits = __ldcg(reinterpret_cast<const double2*>(from));
  return {bits.x, bits.y};
}

__device__ inline void store_partial(Pair* to, Pair pair) {
  double2 bits;
  bits.x = pair.a;
  bits.y = pair.b;
  __stcg(reinterpret_cast<double2*>(to), bits);
}

}  // namespace bnpass::cuda
