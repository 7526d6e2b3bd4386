// Σ dY and Σ dY·(X − mean) per channel and ghost batch, in one pass over both tensors.
//
// Where the work is done in float (value.h), runs of up to 32 products are summed in float and folded into double: the
// error is about 1e-7 of Σ|dY·(X − mean)|. Products below 1e-38 are lost there.
#include "cuda/centre.h"
#include "cuda/channel.h"
#include "cuda/conclude.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/value.h"

namespace bnpass::cuda {
namespace {

struct SumsRule {
  __device__ static Pair term(Pair partial, double, double) { return partial; }
  __device__ static Pair result(Pair sum, double, double) { return sum; }
};

template <class T, int V, bool ACROSS>
class Sums {
 public:
  static constexpr int kLanes = ACROSS ? V : 1;
  using W = SumWork<T>;

  __device__ explicit Sums(const double* mean) : mean_(mean) {
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      centre_[lane] = Centre<W>(mean[lane]);
      sums_[lane] = {0, 0};
    }
  }

  template <int N>
  __device__ void add(const Pack<T, V> (&dY)[N], const Pack<T, V> (&X)[N]) {
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      if constexpr (sizeof(W) == sizeof(double)) {
        add_as(dY, X, lane, centre_[lane], sums_[lane].a, sums_[lane].b);
      } else {
        float sum = 0, product_sum = 0;
        add_as(dY, X, lane, centre_[lane], sum, product_sum);
        if (fabs(product_sum) < 1e37f && fabs(sum) < 1e37f) {
          sums_[lane].a += static_cast<double>(sum);
          sums_[lane].b += static_cast<double>(product_sum);
        } else {  // too much for float
          add_as(dY, X, lane, Centre<double>(mean_[lane]), sums_[lane].a, sums_[lane].b);
        }
      }
    }
  }

  __device__ Pair sums(int lane) const { return sums_[lane]; }

 private:
  template <class As, int N>
  __device__ static void add_as(const Pack<T, V> (&dY)[N], const Pack<T, V> (&X)[N], int lane,
                                const Centre<As>& centre, As& sum, As& product_sum) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int v = ACROSS ? lane : 0; v < (ACROSS ? lane + 1 : V); ++v) {
        const As gradient = static_cast<As>(widen(dY[n].values[v]));
        sum += gradient;
        product_sum = fma(gradient, centre(static_cast<As>(widen(X[n].values[v]))), product_sum);
      }
    }
  }

  const double* mean_;
  Centre<W> centre_[kLanes];
  Pair sums_[kLanes];
};

/// Takes the sums of one thread's elements.
template <class T, int V, bool ACROSS, int LANES>
__device__ void thread_sums(const GradientSumsArguments& arguments, const Place& place, Pair (&found)[LANES]) {
  constexpr int kPairs = kUnroll / 2;  // two tensors are read
  for (int lane = 0; lane < LANES; ++lane) found[lane] = {0, 0};
  if (place.slot_channel >= arguments.layout.channels) return;
  const T* dY = static_cast<const T*>(arguments.dY);
  const T* X = static_cast<const T*>(arguments.X);
  Sums<T, V, ACROSS> sums(arguments.mean + place.group * arguments.layout.channels + place.slot_channel);
  Cursor cursor(arguments.layout, place);
  while (cursor.has(kPairs)) {
    Pack<T, V> gradients[kPairs], values[kPairs];
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      const int64_t offset = cursor.take();
      gradients[n] = load<V>(dY + offset);
      values[n] = load<V>(X + offset);
    }
    sums.add(gradients, values);
  }
  while (cursor.has(1)) {
    const int64_t offset = cursor.take();
    const Pack<T, V> gradient[1] = {load<V>(dY + offset)}, value[1] = {load<V>(X + offset)};
    sums.add(gradient, value);
  }
  for (int lane = 0; lane < LANES; ++lane) found[lane] = sums.sums(lane);
}

struct FinishSums {
  const Gradient& to;
  int64_t group;

  __device__ void operator()(int64_t channel, Pair sums) const { finish(to, group, channel, sums.a, sums.b); }
};

template <class T, int V, bool ACROSS>
__global__ void __launch_bounds__(kThreads)
    gradient_sums_kernel(const __grid_constant__ GradientSumsArguments arguments) {
  constexpr int kLanes = ACROSS ? V : 1;
  __shared__ Pair buffer[kLanes][kThreads];
  __shared__ Pair found[kWidth];
  const Layout& layout = arguments.layout;
  const Place place(layout, kLanes, false);

  Pair sums[kLanes];
  thread_sums<T, V, ACROSS>(arguments, place, sums);
  for (int lane = 0; lane < kLanes; ++lane) buffer[lane][place.position * layout.slots + place.slot] = sums[lane];
  sum_positions<kLanes>(buffer, place.position, place.slot, layout.positions, layout.slots);
  if (place.position == 0) {
    for (int lane = 0; lane < kLanes; ++lane) found[place.slot * kLanes + lane] = buffer[lane][place.slot];
  }
  conclude<SumsRule>(layout, place, layout.slots * kLanes, ACROSS ? 1 : V, arguments.partials,
                     reinterpret_cast<Pair(&)[1][kThreads]>(buffer), found, FinishSums{arguments.to, place.group});
}

}  // namespace

void launch_gradient_sums(const Plan& plan, Element element, GradientSumsArguments arguments, cudaStream_t stream) {
  arguments.layout = layout_of(plan);
  with_instance(plan, element, [&](auto instance) {
    using I = decltype(instance);
    launch(gradient_sums_kernel<typename I::Type, I::vector, I::across>, plan.blocks(), stream, arguments);
  });
}

}  // namespace bnpass::cuda
