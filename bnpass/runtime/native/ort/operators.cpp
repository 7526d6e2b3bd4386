#include "ort/operators.h"

namespace bnpass::ort {

std::vector<Element> values() { return {Element::f32, Element::f16, Element::bf16, Element::f64}; }

std::vector<Element> parameters(Element T) {
  return T == Element::f64 ? std::vector<Element>{Element::f64} : std::vector<Element>{Element::f32, Element::f64};
}

std::vector<Signature> cpu_signatures() {
  std::vector<Signature> all;
  for (const Element T : values()) {
    for (const Element S : parameters(T)) {
      for (const Element U : parameters(T)) all.push_back(sync_batch_normalization(T, S, U));
      all.push_back(sync_batch_normalization_grad(T, S));
    }
    all.push_back(sync_batch_moments(T));
    all.push_back(all_reduce(T));
  }
  all.push_back(all_reduce(Element::i64));
  return all;
}

}  // namespace bnpass::ort
