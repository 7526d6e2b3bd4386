// The part of ONNX Runtime's C ABI that is used here, by slot number: no header of it is needed, none is copied.
//
// The function table only ever grows at its end, so that what is written for version 18 (ONNX Runtime 1.18) runs in every
// later release. The calling convention is the platform's own for C.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bnpass::ort {

constexpr uint32_t api_version = 18;

struct Status;
struct SessionOptions;
struct Domain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct ShapeInfo;
struct Allocator;

/// The table of functions, all of them pointers.
using Table = const void* const;

/// A function of the table.
template <size_t Index, class Signature>
struct Slot {
  static constexpr size_t index = Index;
  static Signature* in(Table* table) {
    return reinterpret_cast<Signature*>(const_cast<void*>(table[Index]));  // NOLINT: that is what the table is
  }
};

using CreateStatus = Slot<0, Status*(int code, const char* text)>;
using GetErrorCode = Slot<1, int(const Status*)>;
using GetErrorMessage = Slot<2, const char*(const Status*)>;
using CreateCustomOpDomain = Slot<26, Status*(const char* name, Domain**)>;
using CustomOpDomain_Add = Slot<27, Status*(Domain*, const struct CustomOp*)>;
using AddCustomOpDomain = Slot<28, Status*(SessionOptions*, Domain*)>;
using GetTensorMutableData = Slot<51, Status*(Value*, void**)>;
using GetDimensionsCount = Slot<61, Status*(const ShapeInfo*, size_t*)>;
using GetDimensions = Slot<62, Status*(const ShapeInfo*, int64_t*, size_t length)>;
using GetTensorTypeAndShape = Slot<65, Status*(const Value*, ShapeInfo**)>;
using AllocatorAlloc = Slot<75, Status*(Allocator*, size_t bytes, void**)>;
using AllocatorFree = Slot<76, Status*(Allocator*, void*)>;
using KernelInfoGetAttribute_float = Slot<85, Status*(const KernelInfo*, const char* name, float*)>;
using KernelInfoGetAttribute_int64 = Slot<86, Status*(const KernelInfo*, const char* name, int64_t*)>;
using KernelInfoGetAttribute_string = Slot<87, Status*(const KernelInfo*, const char* name, char*, size_t* size)>;
using KernelContext_GetInputCount = Slot<88, Status*(const KernelContext*, size_t*)>;
using KernelContext_GetOutputCount = Slot<89, Status*(const KernelContext*, size_t*)>;
using KernelContext_GetInput = Slot<90, Status*(const KernelContext*, size_t index, const Value**)>;
using KernelContext_GetOutput =
    Slot<91, Status*(KernelContext*, size_t index, const int64_t* dims, size_t rank, Value**)>;
using ReleaseStatus = Slot<93, void(Status*)>;
using ReleaseTensorTypeAndShapeInfo = Slot<99, void(ShapeInfo*)>;
using ReleaseAllocator = Slot<132, void(Allocator*)>;
using KernelContext_GetGPUComputeStream = Slot<193, Status*(const KernelContext*, void**)>;
using KernelInfo_GetNodeName = Slot<244, Status*(const KernelInfo*, char*, size_t* size)>;
using KernelContext_ParallelFor =
    Slot<274, Status*(const KernelContext*, void (*task)(void*, size_t), size_t total, size_t batches, void* data)>;
using KernelInfoGetAllocator = Slot<278, Status*(const KernelInfo*, int memory_type, Allocator**)>;

/// What ONNX Runtime hands to RegisterCustomOps.
struct ApiBase {
  Table* (*get_api)(uint32_t version);
  const char* (*version)();
};

enum class Presence : int { required = 0, optional = 1 };
constexpr int memory_default = 0;
constexpr int type_any = 0;

/// An operator, as ONNX Runtime reads it. All callbacks up to ReleaseAliasMap are part of version 18.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, Table*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  int (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  int (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  Presence (*GetInputCharacteristic)(const CustomOp*, size_t);
  Presence (*GetOutputCharacteristic)(const CustomOp*, size_t);
  int (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, Table*, const KernelInfo*, void** kernel);
  Status* (*KernelComputeV2)(void*, KernelContext*);
  Status* (*InferOutputShapeFn)(const CustomOp*, void* shape_context);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

static_assert(sizeof(void*) == 8, "64-bit platforms alone");
static_assert(sizeof(CustomOp) == 26 * 8);
static_assert(offsetof(CustomOp, KernelDestroy) == 9 * 8);
static_assert(offsetof(CustomOp, CreateKernelV2) == 17 * 8);
static_assert(offsetof(CustomOp, ReleaseAliasMap) == 25 * 8);

}  // namespace bnpass::ort
