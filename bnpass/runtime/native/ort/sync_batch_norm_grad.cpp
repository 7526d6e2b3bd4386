// SyncBatchNormalizationGrad on the CPU.
#include "cpu/batch_norm.h"
#include "ort/batch_statistics.h"
#include "ort/operators.h"

namespace bnpass::ort {
namespace {

enum Input : size_t { dY_in, X_in, scale_in, mean_in, inv_std_in, count_in };
enum Output : size_t { dX_out, dscale_out, dB_out };

/// The tensors of one run.
struct Run {
  Geometry geometry;
  const void *dY, *X;
  Vector scale, mean, inv_std;
  double count;
  void *dX, *dscale, *dB;
};

/// Σ dY and Σ dY·(X − mean), [groups, channels].
struct Sums {
  Vector dY, dYX;
};

class SyncBatchNormalizationGrad final : public Kernel {
 public:
  SyncBatchNormalizationGrad(const Node& node, const Signature& signature, const collective::Groups& groups)
      : T_(signature.input(X_in)),
        S_(signature.input(scale_in)),
        axis_(node.integer("axis", -1)),
        virtual_batch_size_(node.integer("virtual_batch_size", 0)),
        membership_(membership(node, groups)) {}

  void compute(const Context& context) const override {
    SessionThreads threads(context);
    const Run run = locally(membership_, [&] { return prepare(context); });
    const Sums local = membership_.shared() ? together(threads, run) : alone(threads, run);
    write(sum_over_groups(run.geometry, scaled(local.dYX, run.inv_std)), S_, run.dscale);
    write(sum_over_groups(run.geometry, local.dY), S_, run.dB);
  }

 private:
  Run prepare(const Context& context) const {
    Run run;
    const Dims dims = context.dims(X_in), of_dY = context.dims(dY_in);
    if (of_dY != dims) throw Error("dY has the shape " + text_of(of_dY) + ", expected that of X, " + text_of(dims));
    run.geometry = geometry(dims, axis_, virtual_batch_size_);
    const Dims C{static_cast<int64_t>(run.geometry.channels)};
    const Dims saved = statistics_dims(run.geometry, virtual_batch_size_);
    run.dY = context.data(dY_in);
    run.X = context.data(X_in);
    run.scale = vector_of(context, scale_in, "scale", S_, {C});
    run.mean = vector_of(context, mean_in, "saved_mean", Element::f64, {saved});
    run.inv_std = vector_of(context, inv_std_in, "saved_inv_std", Element::f64, {saved});
    run.count = count_of(context, count_in);
    run.dX = context.output(dX_out, dims);
    run.dscale = context.output(dscale_out, C);
    run.dB = context.output(dB_out, C);
    return run;
  }

  Sums alone(Parallel& threads, const Run& run) const {
    if (run.count > 0) {
      Sums sums = empty(run);
      cpu::backward(threads, run.geometry, T_, run.dY, run.X, run.scale.data(), run.mean.data(), run.inv_std.data(),
                    run.count, sums.dY.data(), sums.dYX.data(), run.dX);
      return sums;
    }
    Sums sums = run.dscale != nullptr || run.dB != nullptr ? local(threads, run) : empty(run);
    with_constants(threads, run);
    return sums;
  }

  Sums together(Parallel& threads, const Run& run) const {
    Sums sums = local(threads, run);
    Vector message = sums.dY;
    message.insert(message.end(), sums.dYX.begin(), sums.dYX.end());
    exchange(membership_, message);
    if (run.count > 0) {
      with_statistics(threads, run, message);
    } else {
      with_constants(threads, run);
    }
    return sums;
  }

  Sums empty(const Run& run) const { return {Vector(run.geometry.statistics()), Vector(run.geometry.statistics())}; }

  Sums local(Parallel& threads, const Run& run) const {
    Sums sums = empty(run);
    cpu::gradient_sums(threads, run.geometry, T_, run.dY, run.X, run.mean.data(), sums.dY.data(), sums.dYX.data());
    return sums;
  }

  /// Writes dX = scale·s·(dY − S1/M − (X − mean)·s²·S2/M), with [S1, S2] over the group.
  void with_statistics(Parallel& threads, const Run& run, const Vector& message) const {
    const size_t length = run.geometry.statistics();
    Vector shift(length), slope(length);
    for (size_t i = 0; i < length; ++i) {
      shift[i] = message[i] / run.count;
      slope[i] = run.inv_std[i] * run.inv_std[i] * message[length + i] / run.count;
    }
    cpu::gradient_apply(threads, run.geometry, T_, run.dY, run.X, run.mean.data(), factor(run).data(), shift.data(),
                        slope.data(), run.dX);
  }

  /// Writes dX = scale·s·dY.
  void with_constants(Parallel& threads, const Run& run) const {
    cpu::gradient_apply(threads, run.geometry, T_, run.dY, run.X, run.mean.data(), factor(run).data(), nullptr, nullptr,
                        run.dX);
  }

  Vector factor(const Run& run) const { return scaled(for_each_group(run.geometry, run.scale), run.inv_std); }

  static Vector scaled(Vector vector, const Vector& by) {
    for (size_t i = 0; i < vector.size(); ++i) vector[i] *= by[i];
    return vector;
  }

  const Element T_, S_;
  const int64_t axis_, virtual_batch_size_;
  const Membership membership_;
};

}  // namespace

Signature sync_batch_normalization_grad(Element T, Element S) {
  constexpr auto f64 = Element::f64;
  return {"SyncBatchNormalizationGrad",
          {required(T), required(T), required(S), required(f64), required(f64), required(f64), after},
          {required(T), optional(S), optional(S)},
          make<SyncBatchNormalizationGrad>};
}

}  // namespace bnpass::ort
