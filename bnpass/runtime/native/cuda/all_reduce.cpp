// AllReduce on the GPU.
#include "cuda/exchange.h"
#include "cuda/operators.h"
#include "cuda/run.h"
#include "ort/batch_statistics.h"
#include "ort/operators.h"

namespace bnpass::cuda {
namespace {

class AllReduce final : public ort::Kernel {
 public:
  AllReduce(const ort::Node& node, const ort::Signature& signature, const collective::Groups& groups)
      : T_(signature.input(0)),
        reduction_(node.text("reduction", "sum")),
        membership_(ort::membership(node, groups)),
        workspace_(node) {
    const bool known = reduction_ == "sum" || reduction_ == "mean" || reduction_ == "max" || reduction_ == "min";
    if (!known) throw Error(node.title() + ": reduction is '" + reduction_ + "', not sum, mean, max or min");
    if (T_ == Element::i64 && reduction_ == "mean") throw Error(node.title() + ": there is no mean of int64");
  }

  void compute(const ort::Context& context) const override {
    size_t length = 1;
    const void* X = nullptr;
    void* Y = nullptr;
    std::unique_ptr<Workspace::Lease> lease;
    ort::locally(membership_, [&] {
      const ort::Dims dims = context.dims(0);
      for (const int64_t dim : dims) length *= static_cast<size_t>(dim);
      X = context.data(0);
      Y = context.output(0, dims);
      lease = workspace_.lease(stream_of(context), request(length));
    });
    all_reduce(membership_, *lease, T_, reduction_, X, Y, lease->doubles(length), length);
  }

 private:
  Request request(size_t length) const {
    Request request;
    if (!membership_.shared()) return request;
    if (goes_by_host(membership_)) {
      request.staging = length * size_of(T_);
    } else {
      request.doubles = length;
    }
    return request;
  }

  const Element T_;
  const std::string reduction_;
  const ort::Membership membership_;
  mutable Workspace workspace_;
};

}  // namespace

std::unique_ptr<ort::Kernel> make_all_reduce(const ort::Node& node, const ort::Signature& signature,
                                             const collective::Groups& groups) {
  return std::make_unique<AllReduce>(node, signature, groups);
}

}  // namespace bnpass::cuda
