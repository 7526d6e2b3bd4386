// SyncBatchMoments on the CPU.
#include "ort/batch_statistics.h"
#include "ort/operators.h"

namespace bnpass::ort {
namespace {

enum Output : size_t { mean_out, var_out, count_out };

/// The tensors of one run.
struct Run {
  Geometry geometry;
  const void* X;
  void *mean, *var, *count;
};

class SyncBatchMoments final : public Kernel {
 public:
  SyncBatchMoments(const Node& node, const Signature& signature, const collective::Groups& groups)
      : T_(signature.input(0)),
        axis_(node.integer("axis", -1)),
        virtual_batch_size_(node.integer("virtual_batch_size", 0)),
        membership_(membership(node, groups)) {}

  void compute(const Context& context) const override {
    SessionThreads threads(context);
    const Run run = locally(membership_, [&] { return prepare(context); });
    const BatchStatistics found = batch_statistics(threads, run.geometry, T_, run.X, membership_);
    write(found.mean, Element::f64, run.mean);
    write(found.var, Element::f64, run.var);
    write({found.count}, Element::f64, run.count);
  }

 private:
  Run prepare(const Context& context) const {
    Run run;
    run.geometry = geometry(context.dims(0), axis_, virtual_batch_size_);
    const Dims statistics = statistics_dims(run.geometry, virtual_batch_size_);
    run.X = context.data(0);
    run.mean = context.output(mean_out, statistics);
    run.var = context.output(var_out, statistics);
    run.count = context.output(count_out, {});
    return run;
  }

  const Element T_;
  const int64_t axis_, virtual_batch_size_;
  const Membership membership_;
};

}  // namespace

Signature sync_batch_moments(Element T) {
  constexpr auto f64 = Element::f64;
  return {"SyncBatchMoments",
          {required(T), after},
          {required(f64), optional(f64), optional(f64)},
          make<SyncBatchMoments>};
}

}  // namespace bnpass::ort
