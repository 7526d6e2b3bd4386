// Mean and sum of squares per channel and ghost batch, in one pass over X.
//
// Each thread subtracts the first element that it meets: so its sums are as small as the spread of its own elements,
// wherever their mean lies, and one element far away from all others spoils the sums of one thread alone, which it
// dominates anyway. The sums of threads, and then those of blocks, are merged around the mean of the first of them, in
// double. The relative error of the variance is about 1e-14 where the work is done in double, and below 1e-6 where it
// is done in float (value.h), for any |mean|/std that the elements can express.
#include "cuda/channel.h"
#include "cuda/conclude.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/value.h"

namespace bnpass::cuda {
namespace {

/// What a block found about a channel, (mean, Σ(x − mean)²), around a pivot near the means.
struct MomentsRule {
  __device__ static Pair around(double mean, double square_sum, double elements, double pivot) {
    const double away = mean - pivot, weighted = elements * away;
    return {weighted, square_sum + weighted * away};
  }
  __device__ static Pair term(Pair partial, double elements, double pivot) {
    return around(partial.a, partial.b, elements, pivot);
  }
  __device__ static Pair result(Pair sum, double elements, double pivot) {
    const double away = sum.a / elements, square_sum = sum.b - sum.a * away;
    return {pivot + away, square_sum < 0 ? 0 : square_sum};
  }
};

/// Σ(x − shift) and Σ(x − shift)² of one thread.
template <class T, int V, bool ACROSS>
class Sums {
 public:
  static constexpr int kLanes = ACROSS ? V : 1;

  __device__ explicit Sums(const Pack<T, V>& first) {
    for (int lane = 0; lane < kLanes; ++lane) {
      shift_[lane] = widen(first.values[lane]);
      sum_[lane] = square_sum_[lane] = 0;
    }
  }

  template <int N>
  __device__ void add(const Pack<T, V> (&packs)[N]) {
    if constexpr (sizeof(SumWork<T>) == sizeof(double)) {
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) add_as<double>(packs, lane, sum_[lane], square_sum_[lane]);
    } else {
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        float sum = 0, square_sum = 0;
        add_as<float>(packs, lane, sum, square_sum);
        if (holds(square_sum)) {
          sum_[lane] += static_cast<double>(sum);
          square_sum_[lane] += static_cast<double>(square_sum);
        } else {
          add_as<double>(packs, lane, sum_[lane], square_sum_[lane]);
        }
      }
    }
  }

  /// (mean, Σ(x − mean)²) of a lane.
  __device__ Pair moments(int lane, double elements) const {
    return MomentsRule::result({sum_[lane], square_sum_[lane]}, elements, static_cast<double>(shift_[lane]));
  }

 private:
  template <class W, int N>
  __device__ void add_as(const Pack<T, V> (&packs)[N], int lane, W& sum, W& square_sum) const {
    const W shift = static_cast<W>(shift_[lane]);
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int v = ACROSS ? lane : 0; v < (ACROSS ? lane + 1 : V); ++v) {
        const W away = static_cast<W>(widen(packs[n].values[v])) - shift;
        sum += away;
        square_sum = fma(away, away, square_sum);
      }
    }
  }

  /// Whether float has held the squares; those of float16 always fit.
  __device__ static bool holds(float square_sum) {
    return std::is_same_v<T, Half> || (square_sum > 1e-28f && square_sum < 1e37f);
  }

  SumWork<T> shift_[kLanes];
  double sum_[kLanes], square_sum_[kLanes];
};

/// Takes the moments of one thread's elements; true if it has any.
template <class T, int V, bool ACROSS, int LANES>
__device__ bool thread_moments(const Layout& layout, const Place& place, const T* X, Pair (&moments)[LANES],
                               double& elements) {
  if (place.slot_channel >= layout.channels) return false;
  Cursor cursor(layout, place);
  elements = static_cast<double>(cursor.left() * (ACROSS ? 1 : V));
  if (!cursor.has(1)) return false;
  Pack<T, V> one[1] = {load<V>(X + cursor.take())};
  Sums<T, V, ACROSS> sums(one[0]);
  sums.add(one);
  while (cursor.has(kUnroll)) {
    Pack<T, V> packs[kUnroll];
#pragma unroll
    for (int n = 0; n < kUnroll; ++n) packs[n] = load<V>(X + cursor.take());
    sums.add(packs);
  }
  while (cursor.has(1)) {
    one[0] = load<V>(X + cursor.take());
    sums.add(one);
  }
  for (int lane = 0; lane < LANES; ++lane) moments[lane] = sums.moments(lane, elements);
  return true;
}

struct FinishMoments {
  const MomentsArguments& arguments;
  int64_t group;

  __device__ void operator()(int64_t channel, Pair found) const {
    const Statistics& to = arguments.to;
    write(to.square_sum, group * to.channels + channel, found.b);
    finish(to, group, channel, found.a, found.b / arguments.count, arguments.count);
  }
};

template <class T, int V, bool ACROSS>
__global__ void __launch_bounds__(kThreads) moments_kernel(const __grid_constant__ MomentsArguments arguments) {
  constexpr int kLanes = ACROSS ? V : 1;
  constexpr int64_t kShare = ACROSS ? 1 : V;
  __shared__ Pair buffer[kLanes][kThreads];
  __shared__ Pair found[kWidth];
  __shared__ double pivots[kWidth];
  const Layout& layout = arguments.layout;
  const Place place(layout, kLanes, false);

  Pair moments[kLanes];
  double elements = 0;
  const bool any =
      thread_moments<T, V, ACROSS>(layout, place, static_cast<const T*>(arguments.X), moments, elements);
  if (place.position == 0) {  // this thread has an element if any of its slot has
    for (int lane = 0; lane < kLanes; ++lane) pivots[place.slot * kLanes + lane] = any ? moments[lane].a : 0;
  }
  __syncthreads();
#pragma unroll
  for (int lane = 0; lane < kLanes; ++lane) {
    const double pivot = pivots[place.slot * kLanes + lane];
    buffer[lane][place.position * layout.slots + place.slot] =
        any ? MomentsRule::term(moments[lane], elements, pivot) : Pair{0, 0};
  }
  sum_positions<kLanes>(buffer, place.position, place.slot, layout.positions, layout.slots);
  if (place.position == 0 && any) {
    const auto elements_of_split = static_cast<double>(split_size(layout, place.split) * kShare);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int column = place.slot * kLanes + lane;
      found[column] =
          MomentsRule::result(buffer[lane][place.slot], elements_of_split, pivots[column]);
    }
  }
  conclude<MomentsRule>(layout, place, layout.slots * kLanes, kShare, arguments.partials,
                        reinterpret_cast<Pair(&)[1][kThreads]>(buffer), found,
                        FinishMoments{arguments, place.group});
}

}  // namespace

void launch_moments(const Plan& plan, Element element, MomentsArguments arguments, cudaStream_t stream) {
  arguments.layout = layout_of(plan);
  with_instance(plan, element, [&](auto instance) {
    using I = decltype(instance);
    launch(moments_kernel<typename I::Type, I::vector, I::across>, plan.blocks(), stream, arguments);
  });
}

}  // namespace bnpass::cuda
