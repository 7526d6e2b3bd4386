// One entry of the table that ONNX Runtime reads: an operator for certain types on a certain provider.
#pragma once

#include <memory>
#include <vector>

#include "collective/group.h"
#include "core/element.h"
#include "ort/context.h"
#include "ort/node.h"

namespace bnpass::ort {

/// What runs in place of a node. Several threads may run one kernel at once.
class Kernel {
 public:
  virtual ~Kernel() = default;
  virtual void compute(const Context& context) const = 0;
};

/// What one operator with certain types is made of.
struct Signature {
  struct Slot {
    int type;  ///< An Element, or type_any.
    Presence presence = Presence::required;
  };

  const char* name;
  std::vector<Slot> inputs;
  std::vector<Slot> outputs;
  /// Makes the kernel of a node; throws Error if the node cannot be run.
  std::unique_ptr<Kernel> (*make)(const Node&, const Signature&, const collective::Groups&);

  Element input(size_t index) const { return static_cast<Element>(inputs[index].type); }
};

constexpr Signature::Slot required(Element element) { return {static_cast<int>(element), Presence::required}; }
constexpr Signature::Slot optional(Element element) { return {static_cast<int>(element), Presence::optional}; }
constexpr Signature::Slot after{type_any, Presence::optional};

/// A Signature in the form that ONNX Runtime reads. It is found back by its address, so it is never moved.
struct Operator final : CustomOp {
  Operator(Signature signature, const char* provider, std::shared_ptr<collective::Groups> groups);
  Operator(const Operator&) = delete;
  Operator& operator=(const Operator&) = delete;

  const Signature signature;
  const char* const provider;  ///< Null for the CPU.
  const std::shared_ptr<collective::Groups> groups;
};

}  // namespace bnpass::ort
