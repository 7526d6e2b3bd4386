// Y = factor·(X − mean) + B. Blocks run backwards: what the pass for the statistics read last is read first.
#include "cuda/centre.h"
#include "cuda/channel.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/value.h"
#include "cuda/walk.h"

namespace bnpass::cuda {
namespace {

/// What a channel is normalized with, in double.
struct Exact {
  double mean, factor, B;

  __device__ Exact(const NormalizeArguments& arguments, int64_t group, int64_t channel)
      : mean(arguments.mean[group * arguments.layout.channels + channel]),
        factor(arguments.factor[group * arguments.layout.channels + channel]),
        B(read(arguments.B, channel)) {}
  __device__ bool fits_float_all() const {
    return fits_float_term(mean) && fits_float(factor) && fits_float_term(B);
  }
};

template <class T, int V, bool ACROSS>
class Affine {
 public:
  static constexpr int kLanes = ACROSS ? V : 1;
  using W = Work<T>;

  __device__ Affine(const NormalizeArguments& arguments, const Place& place) : arguments_(arguments), place_(place) {
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      const Exact exact(arguments, place.group, place.slot_channel + lane);
      centre_[lane] = Centre<W>(exact.mean);
      factor_[lane] = static_cast<W>(exact.factor);
      B_[lane] = static_cast<W>(exact.B);
      if (sizeof(W) == sizeof(float)) fits_ = fits_ && exact.fits_float_all();
    }
  }

  __device__ Pack<T, V> operator()(const Pack<T, V>& x) const {
    if (!fits_) return in_double(x);
    Pack<T, V> y;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int lane = ACROSS ? v : 0;
      y.values[v] = narrow<T>(fma(factor_[lane], centre_[lane](widen(x.values[v])), B_[lane]));
    }
    return y;
  }

 private:
  /// For numbers that float does not hold; the channel's are read again.
  __device__ Pack<T, V> in_double(const Pack<T, V>& x) const {
    Pack<T, V> y;
    for (int v = 0; v < V; ++v) {
      const Exact exact(arguments_, place_.group, place_.slot_channel + (ACROSS ? v : 0));
      const double away = static_cast<double>(widen(x.values[v])) - exact.mean;
      y.values[v] = narrow<T>(fma(exact.factor, away, exact.B));
    }
    return y;
  }

  const NormalizeArguments& arguments_;
  const Place& place_;
  Centre<W> centre_[kLanes];
  W factor_[kLanes], B_[kLanes];
  bool fits_ = true;
};

template <class T, int V, bool ACROSS>
__global__ void __launch_bounds__(kThreads) normalize_kernel(const __grid_constant__ NormalizeArguments arguments) {
  const Place place(arguments.layout, ACROSS ? V : 1, true);
  if (place.slot_channel >= arguments.layout.channels) return;
  const T* X = static_cast<const T*>(arguments.X);
  T* Y = static_cast<T*>(arguments.Y);
  const Affine<T, V, ACROSS> affine(arguments, place);
  Cursor cursor(arguments.layout, place);
  while (cursor.has(kUnroll)) {
    int64_t offsets[kUnroll];
    Pack<T, V> packs[kUnroll];
#pragma unroll
    for (int n = 0; n < kUnroll; ++n) offsets[n] = cursor.take();
#pragma unroll
    for (int n = 0; n < kUnroll; ++n) packs[n] = load_last<V>(X + offsets[n]);
#pragma unroll
    for (int n = 0; n < kUnroll; ++n) store<V>(Y + offsets[n], affine(packs[n]));
  }
  while (cursor.has(1)) {
    const int64_t offset = cursor.take();
    store<V>(Y + offset, affine(load_last<V>(X + offset)));
  }
}

}  // namespace

void launch_normalize(const Plan& plan, Element element, NormalizeArguments arguments, cudaStream_t stream) {
  arguments.layout = layout_of(plan);
  with_instance(plan, element, [&](auto instance) {
    using I = decltype(instance);
    launch(normalize_kernel<typename I::Type, I::vector, I::across>, plan.blocks(), stream, arguments);
  });
}

}  // namespace bnpass::cuda
