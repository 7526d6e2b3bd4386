// SyncBatchNormalization on the GPU.
#include "cuda/channels.h"
#include "cuda/operators.h"
#include "cuda/run.h"
#include "ort/batch_statistics.h"
#include "ort/operators.h"

namespace bnpass::cuda {
namespace {

using ort::Context;
using ort::Dims;

enum Input : size_t { X_in, scale_in, B_in, mean_in, var_in };
enum Slot : size_t { Y_out, running_mean_out, running_var_out, saved_mean_out, saved_inv_std_out, count_out };

/// The tensors of one run.
struct Run {
  Batch batch;
  Vector scale, B, input_mean, input_var;
  bool per_group;  ///< input_mean and input_var are [groups, channels].
  void *Y, *running_mean, *running_var, *saved_mean, *saved_inv_std, *count;
};

class SyncBatchNormalization final : public ort::Kernel {
 public:
  SyncBatchNormalization(const ort::Node& node, const ort::Signature& signature, const collective::Groups& groups)
      : T_(signature.input(X_in)),
        S_(signature.input(scale_in)),
        U_(signature.input(mean_in)),
        axis_(node.integer("axis", -1)),
        epsilon_(node.real("epsilon", 1e-3F)),
        momentum_(node.real("momentum", 0.99F)),
        training_(node.flag("training_mode", false)),
        correction_(node.flag("running_var_correction", false)),
        virtual_batch_size_(node.integer("virtual_batch_size", 0)),
        membership_(ort::membership(node, groups)),
        workspace_(node) {
    if (!training_) membership_.group = nullptr;  // nothing is exchanged
  }

  void compute(const Context& context) const override {
    const cudaStream_t stream = stream_of(context);
    Run run{};
    std::unique_ptr<Workspace::Lease> lease;
    Statistics to;
    ort::locally(membership_, [&] {
      run = prepare(context);
      lease = workspace_.lease(stream, request(run));
      to = statistics(run, *lease);
    });
    if (training_) {
      batch_statistics(*lease, run.batch, membership_, to, run.input_mean, run.input_var);
    } else {
      given_statistics(stream, to, run.input_mean, run.input_var, run.per_group, 0);
    }
    if (to.groups != 1 && (run.running_mean != nullptr || run.running_var != nullptr)) {
      running_statistics(stream, to.running, to.channels, to.groups, to.mean, to.var, to.count);
    }
    normalize(lease->queue(), run.batch.geometry, T_, run.batch.X, to.mean, to.factor, run.B, run.Y);
  }

 private:
  Run prepare(const Context& context) const {
    Run run{};
    const Dims dims = context.dims(X_in);
    run.batch = {geometry(dims, axis_, virtual_batch_size_), T_, context.data(X_in)};
    const Dims C{static_cast<int64_t>(run.batch.geometry.channels)};
    const Dims saved = ort::statistics_dims(run.batch.geometry, virtual_batch_size_);
    const std::vector<Dims> allowed = training_ ? std::vector<Dims>{C} : std::vector<Dims>{C, saved};
    run.scale = device_vector(context, scale_in, "scale", S_, {C});
    run.B = device_vector(context, B_in, "B", S_, {C});
    run.input_mean = device_vector(context, mean_in, "input_mean", U_, allowed);
    run.input_var = device_vector(context, var_in, "input_var", U_, {context.dims(mean_in)});
    run.per_group = context.dims(mean_in) != C;
    run.Y = context.output(Y_out, dims);
    run.running_mean = context.output(running_mean_out, C);
    run.running_var = context.output(running_var_out, C);
    run.saved_mean = context.output(saved_mean_out, saved);
    run.saved_inv_std = context.output(saved_inv_std_out, saved);
    run.count = context.output(count_out, {});
    if (!training_ && (run.running_mean != nullptr || run.running_var != nullptr)) {
      throw Error("running_mean and running_var are outputs of training mode alone");
    }
    return run;
  }

  Request request(const Run& run) const {
    Request request = request_for(run.batch, membership_);
    request.doubles += 3 * run.batch.geometry.statistics() + 1;  // mean, var, factor, count
    return request;
  }

  Statistics statistics(const Run& run, Workspace::Lease& lease) const {
    const size_t length = run.batch.geometry.statistics();
    Statistics to = statistics_for(run.batch.geometry);
    to.epsilon = epsilon_;
    to.scale = run.scale;
    to.mean = run.saved_mean != nullptr ? static_cast<double*>(run.saved_mean) : lease.doubles(length);
    to.var = to.groups != 1 ? lease.doubles(length) : nullptr;
    to.inv_std = static_cast<double*>(run.saved_inv_std);
    to.factor = lease.doubles(length);
    to.count = run.count != nullptr ? static_cast<double*>(run.count) : lease.doubles(1);
    to.running = {run.input_mean,         run.input_var, {run.running_mean, U_},
                  {run.running_var, U_}, momentum_,     correction_ ? 1.0 : 0.0};
    return to;
  }

  const Element T_, S_, U_;
  const int64_t axis_;
  const double epsilon_, momentum_;
  const bool training_, correction_;
  const int64_t virtual_batch_size_;
  ort::Membership membership_;
  mutable Workspace workspace_;
};

}  // namespace

std::unique_ptr<ort::Kernel> make_sync_batch_normalization(const ort::Node& node, const ort::Signature& signature,
                                                           const collective::Groups& groups) {
  return std::make_unique<SyncBatchNormalization>(node, signature, groups);
}

}  // namespace bnpass::cuda
