// The four operators, for one choice of types each; and the list of all of them.
#pragma once

#include <memory>
#include <vector>

#include "ort/operator.h"

namespace bnpass::ort {

Signature sync_batch_normalization(Element T, Element S, Element U);
Signature sync_batch_normalization_grad(Element T, Element S);
Signature sync_batch_moments(Element T);
Signature all_reduce(Element T);

/// Every operator for every type that its schema allows, on the CPU: no body takes over for a type without a kernel.
std::vector<Signature> cpu_signatures();

/// The combinations of types: S and U are float or double, but double if T is.
std::vector<Element> values();
std::vector<Element> parameters(Element T);

template <class Made>
std::unique_ptr<Kernel> make(const Node& node, const Signature& signature, const collective::Groups& groups) {
  return std::make_unique<Made>(node, signature, groups);
}

}  // namespace bnpass::ort
