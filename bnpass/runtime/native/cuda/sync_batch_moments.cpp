// SyncBatchMoments on the GPU.
#include "cuda/operators.h"
#include "cuda/run.h"
#include "ort/batch_statistics.h"
#include "ort/operators.h"

namespace bnpass::cuda {
namespace {

enum Slot : size_t { mean_out, var_out, count_out };

class SyncBatchMoments final : public ort::Kernel {
 public:
  SyncBatchMoments(const ort::Node& node, const ort::Signature& signature, const collective::Groups& groups)
      : T_(signature.input(0)),
        axis_(node.integer("axis", -1)),
        virtual_batch_size_(node.integer("virtual_batch_size", 0)),
        membership_(ort::membership(node, groups)),
        workspace_(node) {}

  void compute(const ort::Context& context) const override {
    Batch batch{};
    Statistics to;
    std::unique_ptr<Workspace::Lease> lease;
    ort::locally(membership_, [&] {
      batch = {geometry(context.dims(0), axis_, virtual_batch_size_), T_, context.data(0)};
      const ort::Dims statistics = ort::statistics_dims(batch.geometry, virtual_batch_size_);
      to = statistics_for(batch.geometry);
      to.mean = static_cast<double*>(context.output(mean_out, statistics));
      to.var = static_cast<double*>(context.output(var_out, statistics));
      to.count = static_cast<double*>(context.output(count_out, {}));
      lease = workspace_.lease(stream_of(context), request_for(batch, membership_));
    });
    batch_statistics(*lease, batch, membership_, to, {}, {});
  }

 private:
  const Element T_;
  const int64_t axis_, virtual_batch_size_;
  const ort::Membership membership_;
  mutable Workspace workspace_;
};

}  // namespace

std::unique_ptr<ort::Kernel> make_sync_batch_moments(const ort::Node& node, const ort::Signature& signature,
                                                     const collective::Groups& groups) {
  return std::make_unique<SyncBatchMoments>(node, signature, groups);
}

}  // namespace bnpass::cuda
