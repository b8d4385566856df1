# lib/libattile_cuda.so out of src/cuda, which libattile opens at the first CUDA array. Included by CMakeLists.txt at file scope, where
# CMake wants a language to be enabled; sets cuda_summary. ATTILE_CUDA: AUTO builds it when nvcc is found, ON never comes out without.
#
#   src/cuda/**/sm90/*.cu    machine code of sm_90a alone: wgmma, TMA
#   src/cuda/**/*.cu         machine code of sm_80 (runs on all of 8.x) and sm_90, and PTX that newer cards compile at load
#   src/cuda/**/*.cpp        host code: the entry and the table of kernels
#
# The CUDA runtime is linked statically and the driver is found at run time, so that the library loads without either.
if(NOT ATTILE_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "ATTILE_CUDA must be AUTO, ON or OFF: got '${ATTILE_CUDA}'")
endif()

set(cuda_summary "off")
if(NOT ATTILE_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    if(ATTILE_CUDA STREQUAL "ON")
      message(FATAL_ERROR "ATTILE_CUDA is ON, but no CUDA compiler was found: set CUDACXX to nvcc, or ATTILE_CUDA to OFF")
    endif()
    set(cuda_summary "none (AUTO: no CUDA compiler found)")
  endif()
endif()

if(NOT ATTILE_CUDA STREQUAL "OFF" AND CMAKE_CUDA_COMPILER)
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # each target below says its own
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
  find_package(CUDAToolkit 12.8 REQUIRED)

  file(GLOB_RECURSE cuda_host_sources CONFIGURE_DEPENDS src/cuda/*.cpp)
  file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS src/cuda/*.cu)
  set(cuda_sm90_sources ${cuda_sources})
  list(FILTER cuda_sm90_sources INCLUDE REGEX "/sm90/")
  list(FILTER cuda_sources EXCLUDE REGEX "/sm90/")

  add_library(attile_cuda_flags INTERFACE)
  target_link_libraries(attile_cuda_flags INTERFACE attile_flags)
  target_include_directories(attile_cuda_flags SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS})
  set(cuda_options --expt-relaxed-constexpr --compress-mode=size -Xcompiler=-Wall,-Wextra)
  if(ATTILE_WERROR)
    list(APPEND cuda_options -Werror=all-warnings -Xcompiler=-Werror)
  endif()
  target_compile_options(attile_cuda_flags INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:${cuda_options}>")

  # "80-real": machine code; "90": machine code and PTX.
  set(ATTILE_CUDA_ARCHITECTURES 80-real 90 CACHE STRING "what the generic CUDA kernels are compiled for; fewer build faster")
  list(JOIN ATTILE_CUDA_ARCHITECTURES " " cuda_architectures_text)
  string(REGEX REPLACE "([0-9]+[a-z]?)-real" "sm_\\1" cuda_architectures_text "${cuda_architectures_text}")
  string(REGEX REPLACE "(^| )([0-9]+)($| )" "\\1sm_\\2 compute_\\2\\3" cuda_architectures_text "${cuda_architectures_text}")
  set(cuda_objects)
  if(cuda_sm90_sources)
    add_library(attile_cuda_sm90 OBJECT ${cuda_sm90_sources})
    target_link_libraries(attile_cuda_sm90 PRIVATE attile_cuda_flags)
    set_target_properties(attile_cuda_sm90 PROPERTIES CUDA_ARCHITECTURES 90a-real)
    set(cuda_objects $<TARGET_OBJECTS:attile_cuda_sm90>)
    string(APPEND cuda_architectures_text " sm_90a")
  endif()
  add_library(attile_cuda SHARED ${cuda_host_sources} ${cuda_sources} ${cuda_objects})
  target_link_libraries(attile_cuda PRIVATE attile_cuda_flags CUDA::cudart_static)
  target_compile_definitions(attile_cuda PRIVATE ATTILE_CUDA_ARCHITECTURES="${cuda_architectures_text}")
  set_target_properties(attile_cuda PROPERTIES CUDA_ARCHITECTURES "${ATTILE_CUDA_ARCHITECTURES}")
  set(cuda_export_map ${PROJECT_SOURCE_DIR}/cmake/attile_cuda.map)
  target_link_options(attile_cuda PRIVATE LINKER:--version-script=${cuda_export_map} LINKER:--no-undefined)
  set_property(TARGET attile_cuda APPEND PROPERTY LINK_DEPENDS ${cuda_export_map})
  set(cuda_summary "${cuda_architectures_text}, nvcc ${CMAKE_CUDA_COMPILER_VERSION}")
endif()
