#include "ort/operator.h"

#include <utility>

namespace bnpass::ort {
namespace {

const Operator& self(const CustomOp* op) { return *static_cast<const Operator*>(op); }

/// A kernel with the table of the runtime that made it: a process may hold two runtimes.
struct Bound {
  Api api;
  std::unique_ptr<Kernel> kernel;
};

Status* create(const CustomOp* op, Table* table, const KernelInfo* info, void** kernel) {
  const Api api(table);
  return api.guarded([&] {
    const Signature& signature = self(op).signature;
    auto bound = std::make_unique<Bound>(
        Bound{api, signature.make(Node(api, info, signature.name), signature, *self(op).groups)});
    *kernel = bound.release();
  });
}

Status* compute(void* kernel, KernelContext* context) {
  const auto& bound = *static_cast<const Bound*>(kernel);
  return bound.api.guarded([&] { bound.kernel->compute(Context(bound.api, context)); });
}

}  // namespace

Operator::Operator(Signature given, const char* given_provider, std::shared_ptr<collective::Groups> given_groups)
    : CustomOp{}, signature(std::move(given)), provider(given_provider), groups(std::move(given_groups)) {
  version = api_version;
  GetName = [](const CustomOp* op) { return self(op).signature.name; };
  GetExecutionProviderType = [](const CustomOp* op) { return self(op).provider; };
  GetInputTypeCount = [](const CustomOp* op) { return self(op).signature.inputs.size(); };
  GetInputType = [](const CustomOp* op, size_t i) { return self(op).signature.inputs[i].type; };
  GetInputCharacteristic = [](const CustomOp* op, size_t i) { return self(op).signature.inputs[i].presence; };
  GetInputMemoryType = [](const CustomOp*, size_t) { return memory_default; };
  GetOutputTypeCount = [](const CustomOp* op) { return self(op).signature.outputs.size(); };
  GetOutputType = [](const CustomOp* op, size_t i) { return self(op).signature.outputs[i].type; };
  GetOutputCharacteristic = [](const CustomOp* op, size_t i) { return self(op).signature.outputs[i].presence; };
  CreateKernelV2 = create;
  KernelComputeV2 = compute;
  KernelDestroy = [](void* kernel) { delete static_cast<Bound*>(kernel); };
}

}  // namespace bnpass::ort
