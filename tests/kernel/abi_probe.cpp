// A custom operator that calls every slot of ort_abi.h and returns what it saw; test_abi.py builds and runs it.
#include <atomic>
#include <cstring>
#include <string>

#include "ort/api.h"

using namespace bnpass::ort;

namespace {

struct Seen {
  Table* table;
  float real = 0;
  int64_t integer = 0;
  std::string text, name;
  Allocator* allocator = nullptr;
};

template <class Get>
std::string text(const Api& api, const KernelInfo* info, Get get) {
  char buffer[64];
  size_t size = sizeof buffer;
  get(api, info, buffer, &size);
  return std::string(buffer, size - 1);
}

Status* create(const CustomOp*, Table* table, const KernelInfo* info, void** kernel) {
  const Api api(table);
  return api.guarded([&] {
    auto* seen = new Seen{table};
    api.call<KernelInfoGetAttribute_float>(info, "real", &seen->real);
    api.call<KernelInfoGetAttribute_int64>(info, "integer", &seen->integer);
    seen->text = text(api, info, [](const Api& a, const KernelInfo* i, char* b, size_t* n) {
      a.call<KernelInfoGetAttribute_string>(i, "text", b, n);
    });
    seen->name = text(api, info, [](const Api& a, const KernelInfo* i, char* b, size_t* n) {
      a.call<KernelInfo_GetNodeName>(i, b, n);
    });
    api.call<KernelInfoGetAllocator>(info, memory_default, &seen->allocator);
    *kernel = seen;
  });
}

/// Y = [real, integer, text == "abc", name == "probe", inputs, outputs, rank, sum over 100 parallel calls, memory works,
/// no stream, a status keeps its code and text].
Status* compute(void* kernel, KernelContext* context) {
  const auto& seen = *static_cast<const Seen*>(kernel);
  const Api api(seen.table);
  return api.guarded([&] {
    size_t inputs = 0, outputs = 0, rank = 0;
    api.call<KernelContext_GetInputCount>(context, &inputs);
    api.call<KernelContext_GetOutputCount>(context, &outputs);
    const Value* X = nullptr;
    api.call<KernelContext_GetInput>(context, size_t{0}, &X);
    ShapeInfo* info = nullptr;
    api.call<GetTensorTypeAndShape>(X, &info);
    api.call<GetDimensionsCount>(info, &rank);
    int64_t dims[8] = {};
    api.call<GetDimensions>(info, dims, rank);
    api.release<ReleaseTensorTypeAndShapeInfo>(info);
    std::atomic<int64_t> sum{0};
    api.call<KernelContext_ParallelFor>(
        context, [](void* data, size_t i) { *static_cast<std::atomic<int64_t>*>(data) += static_cast<int64_t>(i); },
        size_t{100}, size_t{0}, &sum);
    void* memory = nullptr;
    api.call<AllocatorAlloc>(seen.allocator, size_t{1000}, &memory);
    std::memset(memory, 1, 1000);
    const bool works = static_cast<char*>(memory)[999] == 1;
    api.call<AllocatorFree>(seen.allocator, memory);
    void* stream = nullptr;
    api.call<KernelContext_GetGPUComputeStream>(context, &stream);
    Status* status = CreateStatus::in(seen.table)(9, "as it was");
    const bool kept = GetErrorCode::in(seen.table)(status) == 9 &&
                      std::strcmp(GetErrorMessage::in(seen.table)(status), "as it was") == 0;
    api.release<ReleaseStatus>(status);
    Value* Y = nullptr;
    const int64_t length = 12;
    api.call<KernelContext_GetOutput>(context, size_t{0}, &length, size_t{1}, &Y);
    void* data = nullptr;
    api.call<GetTensorMutableData>(Y, &data);
    const double found[12] = {seen.real, double(seen.integer), double(seen.text == "abc"), double(seen.name == "probe"),
                              double(inputs), double(outputs), double(rank), double(dims[1]), double(sum.load()),
                              double(works), double(stream == nullptr), double(kept)};
    std::memcpy(data, found, sizeof found);
  });
}

void destroy(void* kernel) {
  auto* seen = static_cast<Seen*>(kernel);
  Api(seen->table).release<ReleaseAllocator>(seen->allocator);
  delete seen;
}

CustomOp probe() {
  CustomOp op{};
  op.version = api_version;
  op.GetName = [](const CustomOp*) { return "Probe"; };
  op.GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = op.GetOutputTypeCount = [](const CustomOp*) { return size_t{1}; };
  op.GetInputType = [](const CustomOp*, size_t) { return 1; };
  op.GetOutputType = [](const CustomOp*, size_t) { return 11; };
  op.GetInputCharacteristic = op.GetOutputCharacteristic = [](const CustomOp*, size_t) { return Presence::required; };
  op.GetInputMemoryType = [](const CustomOp*, size_t) { return memory_default; };
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.KernelDestroy = destroy;
  return op;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) Status* RegisterCustomOps(SessionOptions* options,
                                                                            const ApiBase* base) {
  static const CustomOp op = probe();
  const Api api(base->get_api(api_version));
  return api.guarded([&] {
    Domain* domain = nullptr;
    api.call<CreateCustomOpDomain>("probe", &domain);
    api.call<CustomOpDomain_Add>(domain, &op);
    api.call<AddCustomOpDomain>(options, domain);
  });
}
