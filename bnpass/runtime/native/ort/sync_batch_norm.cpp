// SyncBatchNormalization on the CPU.
#include <algorithm>
#include <cmath>

#include "cpu/batch_norm.h"
#include "ort/batch_statistics.h"
#include "ort/operators.h"

namespace bnpass::ort {
namespace {

enum Input : size_t { X_in, scale_in, B_in, mean_in, var_in };
enum Output : size_t { Y_out, running_mean_out, running_var_out, saved_mean_out, saved_inv_std_out, count_out };

/// The tensors of one run.
struct Run {
  Geometry geometry;
  const void* X;
  Vector scale, B, input_mean, input_var;
  void *Y, *running_mean, *running_var, *saved_mean, *saved_inv_std, *count;
};

/// What X is normalized with; count is 0 if it was given.
struct Used {
  BatchStatistics statistics;
  Vector inv_std;
};

class SyncBatchNormalization final : public Kernel {
 public:
  SyncBatchNormalization(const Node& node, const Signature& signature, const collective::Groups& groups)
      : T_(signature.input(X_in)),
        S_(signature.input(scale_in)),
        U_(signature.input(mean_in)),
        axis_(node.integer("axis", -1)),
        epsilon_(node.real("epsilon", 1e-3F)),
        momentum_(node.real("momentum", 0.99F)),
        training_(node.flag("training_mode", false)),
        correction_(node.flag("running_var_correction", false)),
        virtual_batch_size_(node.integer("virtual_batch_size", 0)),
        membership_(membership(node, groups)) {}

  void compute(const Context& context) const override {
    SessionThreads threads(context);
    if (!training_) {
      const Run run = prepare(context);
      finish(run, with_given(threads, run));
      return;
    }
    const Run run = locally(membership_, [&] { return prepare(context); });
    finish(run, with_batch(threads, run));
  }

 private:
  Run prepare(const Context& context) const {
    Run run;
    const Dims dims = context.dims(X_in);
    run.geometry = geometry(dims, axis_, virtual_batch_size_);
    const Dims C{static_cast<int64_t>(run.geometry.channels)};
    const Dims saved = statistics_dims(run.geometry, virtual_batch_size_);
    const std::vector<Dims> statistics = training_ ? std::vector<Dims>{C} : std::vector<Dims>{C, saved};
    run.X = context.data(X_in);
    run.scale = vector_of(context, scale_in, "scale", S_, {C});
    run.B = vector_of(context, B_in, "B", S_, {C});
    run.input_mean = vector_of(context, mean_in, "input_mean", U_, statistics);
    run.input_var = vector_of(context, var_in, "input_var", U_, statistics);
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

  Used with_batch(Parallel& threads, const Run& run) const {
    const Geometry& geometry = run.geometry;
    if (membership_.shared() || geometry.count() == 0) {
      BatchStatistics found = batch_statistics(threads, geometry, T_, run.X, membership_);
      return found.count > 0 ? normalized(threads, run, std::move(found)) : with_given(threads, run);
    }
    const size_t length = geometry.statistics();
    Used used{{Vector(length), Vector(length), static_cast<double>(geometry.count())}, Vector(length)};
    cpu::forward(threads, geometry, T_, run.X, run.scale.data(), run.B.data(), epsilon_, used.statistics.mean.data(),
                 used.statistics.var.data(), used.inv_std.data(), run.Y);
    return used;
  }

  Used with_given(Parallel& threads, const Run& run) const {
    return normalized(threads, run, {for_each_group(run.geometry, run.input_mean),
                                     for_each_group(run.geometry, run.input_var), 0.0});
  }

  Used normalized(Parallel& threads, const Run& run, BatchStatistics statistics) const {
    const size_t length = run.geometry.statistics();
    Vector inv_std(length), factor(length);
    for (size_t i = 0; i < length; ++i) {
      inv_std[i] = 1.0 / std::sqrt(statistics.var[i] + epsilon_);
      factor[i] = run.scale[i % run.geometry.channels] * inv_std[i];
    }
    cpu::normalize(threads, run.geometry, T_, run.X, statistics.mean.data(), factor.data(), run.B.data(), run.Y);
    return {std::move(statistics), std::move(inv_std)};
  }

  void finish(const Run& run, const Used& used) const {
    const double count = used.statistics.count;
    const double unbiased = count / std::max(count - (correction_ ? 1.0 : 0.0), 1.0);
    write(running(run, run.input_mean, used.statistics.mean, count, 1.0), U_, run.running_mean);
    write(running(run, run.input_var, used.statistics.var, count, unbiased), U_, run.running_var);
    write(used.statistics.mean, Element::f64, run.saved_mean);
    write(used.inv_std, Element::f64, run.saved_inv_std);
    write({count}, Element::f64, run.count);
  }

  /// momentum·before + (1 − momentum)·factor·(average of the ghost batches); before, if no element was counted.
  Vector running(const Run& run, const Vector& before, const Vector& batch, double count, double factor) const {
    if (count == 0) return before;
    Vector after = sum_over_groups(run.geometry, batch);
    const double taken = (1.0 - momentum_) * factor / static_cast<double>(run.geometry.groups);
    for (size_t c = 0; c < after.size(); ++c) after[c] = momentum_ * before[c] + taken * after[c];
    return after;
  }

  const Element T_, S_, U_;
  const int64_t axis_;
  const double epsilon_, momentum_;
  const bool training_, correction_;
  const int64_t virtual_batch_size_;
  const Membership membership_;
};

}  // namespace

Signature sync_batch_normalization(Element T, Element S, Element U) {
  return {"SyncBatchNormalization",
          {required(T), required(S), required(S), required(U), required(U), after},
          {required(T), optional(U), optional(U), optional(Element::f64), optional(Element::f64), optional(Element::f64)},
          make<SyncBatchNormalization>};
}

}  // namespace bnpass::ort
