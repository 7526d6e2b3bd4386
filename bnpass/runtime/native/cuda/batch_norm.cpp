#include "cuda/batch_norm.h"

#include "cuda/check.h"
#include "cuda/kernels.h"

namespace bnpass::cuda {
namespace {

template <class... Pointers>
uintptr_t addresses(Pointers... pointers) {
  return (reinterpret_cast<uintptr_t>(pointers) | ...);
}

}  // namespace

void moments(const Queue& queue, const Geometry& geometry, Element element, const void* X, const Statistics& to) {
  const Plan p = plan(geometry, element, addresses(X), queue.processors);
  launch_moments(p, element, {{}, X, queue.partials, static_cast<double>(geometry.count()), to}, queue.stream);
}

void normalize(const Queue& queue, const Geometry& geometry, Element element, const void* X, const double* mean,
               const double* factor, Vector B, void* Y) {
  if (geometry.size() == 0) return;
  const Plan p = plan(geometry, element, addresses(X, Y), queue.processors);
  launch_normalize(p, element, {{}, X, mean, factor, B, Y}, queue.stream);
}

void gradient_sums(const Queue& queue, const Geometry& geometry, Element element, const void* dY, const void* X,
                   const double* mean, const Gradient& to) {
  const Plan p = plan(geometry, element, addresses(dY, X), queue.processors);
  launch_gradient_sums(p, element, {{}, dY, X, mean, queue.partials, to}, queue.stream);
}

void gradient_apply(const Queue& queue, const Geometry& geometry, Element element, const void* dY, const void* X,
                    const double* mean, const double* factor, const double* shift, const double* slope,
                    const double* count, void* dX) {
  if (geometry.size() == 0) return;
  const Plan p = plan(geometry, element, addresses(dY, X, dX), queue.processors);
  launch_gradient_apply(p, element, {{}, dY, X, mean, factor, shift, slope, count, dX}, queue.stream);
}

int processors() {
  int device = 0, count = 0;
  check(cudaGetDevice(&device), "there is no current device");
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "a device does not tell its size");
  return count;
}

}  // namespace bnpass::cuda
