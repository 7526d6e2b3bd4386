// SyncBatchNormalizationGrad on the GPU. The count stays on the device: the kernels decide there what M = 0 means.
#include "cuda/channels.h"
#include "cuda/check.h"
#include "cuda/exchange.h"
#include "cuda/layer.h"
#include "cuda/operators.h"
#include "cuda/plan.h"
#include "cuda/run.h"
#include "ort/batch_statistics.h"
#include "ort/operators.h"

namespace bnpass::cuda {
namespace {

using ort::Context;
using ort::Dims;

enum Input : size_t { dY_in, X_in, scale_in, mean_in, inv_std_in, count_in };
enum Slot : size_t { dX_out, dscale_out, dB_out };

/// The tensors of one run.
struct Run {
  Geometry geometry;
  const void *dY, *X;
  Vector scale;
  const double *mean, *inv_std, *count;
  void *dX, *dscale, *dB;
};

class SyncBatchNormalizationGrad final : public ort::Kernel {
 public:
  SyncBatchNormalizationGrad(const ort::Node& node, const ort::Signature& signature, const collective::Groups& groups)
      : T_(signature.input(X_in)),
        S_(signature.input(scale_in)),
        axis_(node.integer("axis", -1)),
        virtual_batch_size_(node.integer("virtual_batch_size", 0)),
        membership_(ort::membership(node, groups)),
        workspace_(node) {}

  void compute(const Context& context) const override {
    const cudaStream_t stream = stream_of(context);
    Run run{};
    std::unique_ptr<Workspace::Lease> lease;
    Gradient to;
    double* message = nullptr;
    ort::locally(membership_, [&] {
      run = prepare(context);
      lease = workspace_.lease(stream, request(run));
      message = lease->doubles(2 * run.geometry.statistics());
      to = gradient(run, *lease, message);
      if (run.geometry.size() == 0) clear(stream, run, message);
      if (membership_.shared()) local_sums(*lease, run, to);
    });
    if (!membership_.shared()) {
      if (run.geometry.size() > 0) backward(lease->queue(), run.geometry, T_, run.dY, run.X, run.mean, to, run.dX);
      return;
    }
    exchange(membership_, *lease, message, 2 * run.geometry.statistics());
    to.sum_dY = to.sum_dYX = nullptr;
    to.dscale = to.dB = {};
    unpack_gradient(stream, to, message);
    gradient_apply(lease->queue(), run.geometry, T_, run.dY, run.X, run.mean, to.factor, to.shift, to.slope, to.count,
                   run.dX);
  }

 private:
  Run prepare(const Context& context) const {
    Run run{};
    const Dims dims = context.dims(X_in), of_dY = context.dims(dY_in);
    if (of_dY != dims) {
      throw Error("dY has the shape " + ort::text_of(of_dY) + ", expected that of X, " + ort::text_of(dims));
    }
    run.geometry = geometry(dims, axis_, virtual_batch_size_);
    const Dims C{static_cast<int64_t>(run.geometry.channels)};
    const Dims saved = ort::statistics_dims(run.geometry, virtual_batch_size_);
    const auto doubles = [&](size_t input, const char* name, const Dims& shape) {
      return static_cast<const double*>(device_vector(context, input, name, Element::f64, {shape}).data);
    };
    run.dY = context.data(dY_in);
    run.X = context.data(X_in);
    run.scale = device_vector(context, scale_in, "scale", S_, {C});
    run.mean = doubles(mean_in, "saved_mean", saved);
    run.inv_std = doubles(inv_std_in, "saved_inv_std", saved);
    run.count = doubles(count_in, "count", {});
    run.dX = context.output(dX_out, dims);
    run.dscale = context.output(dscale_out, C);
    run.dB = context.output(dB_out, C);
    return run;
  }

  Request request(const Run& run) const {
    const Needs least = needs(run.geometry, T_, processors());
    const size_t length = run.geometry.statistics();
    Request request{least.counters, least.partials, 5 * length, 0};  // message, factor, shift, slope
    if (goes_by_host(membership_)) request.staging = 2 * length * sizeof(double);
    return request;
  }

  /// Everything that a gradient becomes; the sums are the message.
  Gradient gradient(const Run& run, Workspace::Lease& lease, double* message) const {
    const size_t length = run.geometry.statistics();
    Gradient to;
    to.channels = static_cast<int64_t>(run.geometry.channels);
    to.groups = static_cast<int64_t>(run.geometry.groups);
    to.scale = run.scale;
    to.inv_std = run.inv_std;
    to.count = run.count;
    to.sum_dY = message;
    to.sum_dYX = message + length;
    to.factor = lease.doubles(length);
    to.shift = lease.doubles(length);
    to.slope = lease.doubles(length);
    to.dscale = {run.dscale, S_};
    to.dB = {run.dB, S_};
    return to;
  }

  /// The sums over this replica, and the gradients of the parameters, which are those of this replica.
  void local_sums(const Workspace::Lease& lease, const Run& run, Gradient to) const {
    if (run.geometry.size() == 0) return;
    to.shift = to.slope = nullptr;
    gradient_sums(lease.queue(), run.geometry, T_, run.dY, run.X, run.mean, to);
    if (to.groups != 1) gradient_of_parameters(lease.stream(), to);
  }

  /// Sums over no elements.
  void clear(cudaStream_t stream, const Run& run, double* message) const {
    const auto zero = [stream](void* data, size_t bytes) {
      if (data != nullptr && bytes > 0) check(cudaMemsetAsync(data, 0, bytes, stream), "a vector cannot be set to 0");
    };
    zero(message, 2 * run.geometry.statistics() * sizeof(double));
    zero(run.dscale, run.geometry.channels * size_of(S_));
    zero(run.dB, run.geometry.channels * size_of(S_));
  }

  const Element T_, S_;
  const int64_t axis_, virtual_batch_size_;
  const ort::Membership membership_;
  mutable Workspace workspace_;
};

}  // namespace

std::unique_ptr<ort::Kernel> make_sync_batch_normalization_grad(const ort::Node& node, const ort::Signature& signature,
                                                                const collective::Groups& groups) {
  return std::make_unique<SyncBatchNormalizationGrad>(node, signature, groups);
}

}  // namespace bnpass::cuda
