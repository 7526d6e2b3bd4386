// dX = factor·(dY − shift − slope·(X − mean)), or factor·dY where the statistics were constants. Blocks run backwards,
// as in normalize.cu.
#include "cuda/centre.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/value.h"
#include "cuda/walk.h"

namespace bnpass::cuda {
namespace {

/// What the gradient of a channel is made with, in double.
struct Exact {
  double mean, factor, shift = 0, slope = 0;

  __device__ Exact(const GradientApplyArguments& arguments, bool constants, int64_t group, int64_t channel) {
    const int64_t i = group * arguments.layout.channels + channel;
    mean = arguments.mean[i];
    factor = arguments.factor[i];
    if (constants) return;
    shift = arguments.shift[i];
    slope = arguments.slope[i];
  }
  __device__ bool fits_float_all() const {
    return fits_float_term(mean) && fits_float(factor) && fits_float_term(shift) && fits_float(slope);
  }
};

template <class T, int V, bool ACROSS>
class Rule {
 public:
  static constexpr int kLanes = ACROSS ? V : 1;
  using W = SumWork<T>;  // its terms cancel

  __device__ Rule(const GradientApplyArguments& arguments, const Place& place, bool constants)
      : arguments_(arguments), place_(place), constants_(constants) {
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      const Exact exact(arguments, constants, place.group, place.slot_channel + lane);
      centre_[lane] = Centre<W>(exact.mean);
      factor_[lane] = static_cast<W>(exact.factor);
      shift_[lane] = static_cast<W>(exact.shift);
      slope_[lane] = static_cast<W>(exact.slope);
      if (sizeof(W) == sizeof(float)) fits_ = fits_ && exact.fits_float_all();
    }
  }

  __device__ Pack<T, V> operator()(const Pack<T, V>& dY, const Pack<T, V>& X) const {
    if (!fits_) return in_double(dY, X);
    Pack<T, V> dX;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int lane = ACROSS ? v : 0;
      const W rest = static_cast<W>(widen(dY.values[v])) - shift_[lane];
      dX.values[v] = narrow<T>(factor_[lane] * fma(-slope_[lane], centre_[lane](widen(X.values[v])), rest));
    }
    return dX;
  }

  /// factor·dY.
  __device__ Pack<T, V> operator()(const Pack<T, V>& dY) const {
    if (!fits_) return in_double(dY, dY);
    Pack<T, V> dX;
#pragma unroll
    for (int v = 0; v < V; ++v) dX.values[v] = narrow<T>(factor_[ACROSS ? v : 0] * widen(dY.values[v]));
    return dX;
  }

 private:
  /// For numbers that float does not hold; the channel's are read again.
  __device__ Pack<T, V> in_double(const Pack<T, V>& dY, const Pack<T, V>& X) const {
    Pack<T, V> dX;
    for (int v = 0; v < V; ++v) {
      const Exact exact(arguments_, constants_, place_.group, place_.slot_channel + (ACROSS ? v : 0));
      double rest = static_cast<double>(widen(dY.values[v])) - exact.shift;
      if (!constants_) rest = fma(-exact.slope, static_cast<double>(widen(X.values[v])) - exact.mean, rest);
      dX.values[v] = narrow<T>(exact.factor * rest);
    }
    return dX;
  }

  const GradientApplyArguments& arguments_;
  const Place& place_;
  const bool constants_;
  Centre<W> centre_[kLanes];
  W factor_[kLanes], shift_[kLanes], slope_[kLanes];
  bool fits_ = true;
};

template <class T, int V, bool ACROSS>
__global__ void __launch_bounds__(kThreads)
    gradient_apply_kernel(const __grid_constant__ GradientApplyArguments arguments) {
  constexpr int kPairs = kUnroll / 2;  // two tensors are read
  const Place place(arguments.layout, ACROSS ? V : 1, true);
  if (place.slot_channel >= arguments.layout.channels) return;
  const T* dY = static_cast<const T*>(arguments.dY);
  const T* X = static_cast<const T*>(arguments.X);
  T* dX = static_cast<T*>(arguments.dX);
  const bool constants = arguments.shift == nullptr || (arguments.count != nullptr && *arguments.count == 0);
  const Rule<T, V, ACROSS> rule(arguments, place, constants);
  Cursor cursor(arguments.layout, place);
  if (constants) {
    while (cursor.has(1)) {
      const int64_t offset = cursor.take();
      store<V>(dX + offset, rule(load_last<V>(dY + offset)));
    }
    return;
  }
  while (cursor.has(kPairs)) {
    int64_t offsets[kPairs];
    Pack<T, V> gradients[kPairs], values[kPairs];
#pragma unroll
    for (int n = 0; n < kPairs; ++n) offsets[n] = cursor.take();
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      gradients[n] = load_last<V>(dY + offsets[n]);
      values[n] = load_last<V>(X + offsets[n]);
    }
#pragma unroll
    for (int n = 0; n < kPairs; ++n) store<V>(dX + offsets[n], rule(gradients[n], values[n]));
  }
  while (cursor.has(1)) {
    const int64_t offset = cursor.take();
    store<V>(dX + offset, rule(load_last<V>(dY + offset), load_last<V>(X + offset)));
  }
}

}  // namespace

void launch_gradient_apply(const Plan& plan, Element element, GradientApplyArguments arguments, cudaStream_t stream) {
  arguments.layout = layout_of(plan);
  with_instance(plan, element, [&](auto instance) {
    using I = decltype(instance);
    launch(gradient_apply_kernel<typename I::Type, I::vector, I::across>, plan.blocks(), stream, arguments);
  });
}

}  // namespace bnpass::cuda
