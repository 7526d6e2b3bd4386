#include "cuda/layer.h"

#include "cuda/channels.h"

namespace bnpass::cuda {

void forward(const Queue& queue, const Geometry& geometry, Element element, const void* X, const Statistics& to,
             Vector B, void* Y) {
  moments(queue, geometry, element, X, to);
  if (to.groups != 1 && (to.running.mean_after.data != nullptr || to.running.var_after.data != nullptr)) {
    running_statistics(queue.stream, to.running, to.channels, to.groups, to.mean, to.var, to.count);
  }
  normalize(queue, geometry, element, X, to.mean, to.factor, B, Y);
}

void backward(const Queue& queue, const Geometry& geometry, Element element, const void* dY, const void* X,
              const double* mean, const Gradient& to, void* dX) {
  gradient_sums(queue, geometry, element, dY, X, mean, to);
  if (to.groups != 1 && (to.dscale.data != nullptr || to.dB.data != nullptr)) {
    gradient_of_parameters(queue.stream, to);
  }
  gradient_apply(queue, geometry, element, dY, X, mean, to.factor, to.shift, to.slope, to.count, dX);
}

}  // namespace bnpass::cuda
