// Launching kernels: the choice of an instance for a plan, and errors as exceptions.
#pragma once

#include <cuda_runtime.h>

#include "core/element.h"
#include "core/error.h"
#include "cuda/check.h"
#include "cuda/plan.h"

namespace bnpass::cuda {

/// Runs blocks of 256 threads of a kernel, in the order of the stream.
template <class Arguments>
void launch(void (*kernel)(Arguments), int64_t blocks, cudaStream_t stream, const Arguments& arguments) {
#ifdef __CUDACC__
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(arguments);
#else
  host_launch(static_cast<unsigned>(blocks), kThreads, [&] { kernel(arguments); }, stream);
#endif
  check(cudaGetLastError(), "a kernel could not be launched");
}

template <class T, int V, bool ACROSS>
struct Instance {
  using Type = T;
  static constexpr int vector = V;
  static constexpr bool across = ACROSS;
};

template <class T, class Body>
void with_vector(const Plan& plan, const Body& body) {
  constexpr int whole = kVectorBytes / static_cast<int>(sizeof(T));
  if (plan.across) {
    if (plan.vector == whole) return body(Instance<T, whole, true>{});
    return body(Instance<T, 1, true>{});
  }
  if (plan.vector == whole) return body(Instance<T, whole, false>{});
  if constexpr (sizeof(T) == 2) {
    if (plan.vector == whole / 2) return body(Instance<T, whole / 2, false>{});
  }
  return body(Instance<T, 1, false>{});
}

/// Calls body with the Instance that a plan asks for.
template <class Body>
void with_instance(const Plan& plan, Element element, const Body& body) {
  switch (element) {
    case Element::f16:
      return with_vector<Half>(plan, body);
    case Element::bf16:
      return with_vector<BFloat16>(plan, body);
    case Element::f32:
      return with_vector<float>(plan, body);
    case Element::f64:
      return with_vector<double>(plan, body);
    case Element::i64:
      break;
  }
  throw Error("there is no batch normalization of tensor(int64)");
}

}  // namespace bnpass::cuda
