// AllReduce on the CPU.
#include "collective/all_reduce.h"

#include <cstring>

#include "ort/batch_statistics.h"
#include "ort/operators.h"

namespace bnpass::ort {
namespace {

class AllReduce final : public Kernel {
 public:
  AllReduce(const Node& node, const Signature& signature, const collective::Groups& groups)
      : T_(signature.input(0)), reduction_(node.text("reduction", "sum")), membership_(membership(node, groups)) {
    const bool known = reduction_ == "sum" || reduction_ == "mean" || reduction_ == "max" || reduction_ == "min";
    if (!known) throw Error(node.title() + ": reduction is '" + reduction_ + "', not sum, mean, max or min");
    if (T_ == Element::i64 && reduction_ == "mean") throw Error(node.title() + ": there is no mean of int64");
  }

  void compute(const Context& context) const override {
    size_t length = 1;
    const void* X = nullptr;
    void* Y = nullptr;
    locally(membership_, [&] {
      const Dims dims = context.dims(0);
      for (const int64_t dim : dims) length *= static_cast<size_t>(dim);
      X = context.data(0);
      Y = context.output(0, dims);
    });
    if (membership_.shared()) {
      collective::all_reduce(*membership_.group, membership_.call, T_, reduction_, X, Y, length);
    } else if (length > 0) {
      std::memcpy(Y, X, length * size_of(T_));
    }
  }

 private:
  const Element T_;
  const std::string reduction_;
  const Membership membership_;
};

}  // namespace

Signature all_reduce(Element T) { return {"AllReduce", {required(T), after}, {required(T)}, make<AllReduce>}; }

}  // namespace bnpass::ort
