# libbnpass_ort_cuda.so: all that libbnpass_ort.so holds, and the kernels for NVIDIA GPUs.
#
# BNPASS_CUDA=AUTO builds it where there is an nvcc, ON insists, OFF leaves it out. For a test on one machine,
# -DBNPASS_CUDA_ARCHITECTURES=90-real builds for that GPU alone, in a fifth of the time; "native" asks the GPU.
# BNPASS_CUDA_HOST=ON builds libbnpass_ort_cuda_host.so: the same sources without CUDA, for tests on any machine.
option(BNPASS_CUDA_HOST "Build the stand-in that runs the CUDA sources on the host, for tests" OFF)
set(BNPASS_FAST_DOUBLE 1 CACHE STRING "The stand-in works like a GPU whose double is fast (1) or slow (0)")

file(GLOB cuda_kernels CONFIGURE_DEPENDS cuda/*.cu)
file(GLOB cuda_host_code CONFIGURE_DEPENDS cuda/*.cpp)

function(bnpass_add_cuda_library)
  add_library(bnpass_ort_cuda SHARED ${cuda_kernels} ${cuda_host_code})
  set_target_properties(bnpass_ort_cuda PROPERTIES
    CUDA_ARCHITECTURES "${BNPASS_CUDA_ARCHITECTURES}"
    CUDA_STANDARD 17
    CUDA_STANDARD_REQUIRED ON
    CUDA_VISIBILITY_PRESET hidden
    CUDA_RUNTIME_LIBRARY Static
    LINKER_LANGUAGE CXX
    LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/exports.map)
  target_compile_options(bnpass_ort_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-O3 -Xcompiler=-Wall,-Wextra>")
  if(BNPASS_WERROR)
    target_compile_options(bnpass_ort_cuda PRIVATE
      "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Werror all-warnings -Xcompiler=-Werror>")
  endif()
  target_link_libraries(bnpass_ort_cuda PRIVATE bnpass_host CUDA::cudart_static)
  target_link_options(bnpass_ort_cuda PRIVATE ${export_options})
  install(TARGETS bnpass_ort_cuda LIBRARY DESTINATION bnpass/runtime/lib)
endfunction()

# The kernels of the GPU as operators of the CPU.
function(bnpass_add_cuda_host_library)
  set(sources ${host_sources} ${cuda_kernels} ${cuda_host_code})
  list(FILTER sources EXCLUDE REGEX "(cuda/provider|ort/operators).cpp$")
  add_library(bnpass_ort_cuda_host SHARED ${sources} tests/cuda_host/runtime.cpp tests/cuda_host/operators.cpp)
  set_source_files_properties(${cuda_kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++")
  target_include_directories(bnpass_ort_cuda_host BEFORE PRIVATE tests/cuda_host)
  target_compile_options(bnpass_ort_cuda_host PRIVATE -Wno-unknown-pragmas -Wno-unused-parameter -O1 -g)
  target_compile_definitions(bnpass_ort_cuda_host PRIVATE
    BNPASS_VERSION="cuda on the host" BNPASS_FAST_DOUBLE=${BNPASS_FAST_DOUBLE})
  target_link_libraries(bnpass_ort_cuda_host PRIVATE bnpass_flags)
  target_link_options(bnpass_ort_cuda_host PRIVATE ${export_options})
endfunction()

# Whether nvcc, its host compiler and its headers build for all architectures: an nvcc may be too old for one.
function(bnpass_try_cuda result)
  include(CheckSourceCompiles)
  set(CMAKE_CUDA_ARCHITECTURES ${BNPASS_CUDA_ARCHITECTURES})
  check_source_compiles(CUDA "
    #include <cuda_bf16.h>
    #include <cuda_fp16.h>
    __global__ void kernel(__nv_bfloat16* x, __half* y) { x[0] = __float2bfloat16(__half2float(y[0])); }
    int main() { kernel<<<1, 1>>>(nullptr, nullptr); }" ${result})
endfunction()

if(BNPASS_CUDA_HOST)
  if(NOT BNPASS_CUDA STREQUAL "OFF")
    message(FATAL_ERROR "BNPASS_CUDA_HOST builds the CUDA sources without CUDA: it takes BNPASS_CUDA=OFF")
  endif()
  bnpass_add_cuda_host_library()
elseif(NOT BNPASS_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES OFF) # each target says its own
  endif()
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    find_package(CUDAToolkit REQUIRED)
    bnpass_try_cuda(BNPASS_CUDA_WORKS)
  endif()
  if(BNPASS_CUDA_WORKS)
    bnpass_add_cuda_library()
  elseif(BNPASS_CUDA STREQUAL "ON")
    message(FATAL_ERROR "BNPASS_CUDA=ON, but there is no nvcc that builds for ${BNPASS_CUDA_ARCHITECTURES}")
  else()
    message(STATUS "bnpass: no nvcc that builds for ${BNPASS_CUDA_ARCHITECTURES}: libbnpass_ort_cuda.so is not built")
  endif()
endif()

if(BNPASS_TESTS)
  add_executable(cuda_plan_check tests/cuda_plan_check.cpp cuda/plan.cpp)
  target_link_libraries(cuda_plan_check PRIVATE bnpass_flags)
endif()
