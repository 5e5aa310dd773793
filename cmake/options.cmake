# SPDX-License-Identifier: Apache-2.0
# Build options and the compile flags of our own code (target mixgemm_options).
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
find_program(MIXGEMM_CCACHE ccache)
if(MIXGEMM_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${MIXGEMM_CCACHE})
endif()

# CUDA is used when a compiler is there, unless told otherwise.
if(NOT DEFINED MIXGEMM_CUDA)
  find_program(MIXGEMM_NVCC nvcc PATHS /usr/local/cuda/bin ENV CUDACXX)
  if(MIXGEMM_NVCC)
    set(MIXGEMM_CUDA_DEFAULT ON)
  else()
    set(MIXGEMM_CUDA_DEFAULT OFF)
    message(STATUS "mixgemm: no CUDA compiler found, building for the CPU only")
  endif()
endif()
option(MIXGEMM_CUDA "Build the CUDA kernels" ${MIXGEMM_CUDA_DEFAULT})
option(BUILD_SHARED_LIBS "Build libmixgemm as a shared library" ON)
option(MIXGEMM_CLI "Build the command line program" ${PROJECT_IS_TOP_LEVEL})
option(MIXGEMM_TESTS "Build the tests" ${PROJECT_IS_TOP_LEVEL})
option(MIXGEMM_BENCH "Build the benchmarks" ${PROJECT_IS_TOP_LEVEL})
option(MIXGEMM_PYTHON "Build the Python package" OFF)
option(MIXGEMM_FUZZ "Build the fuzzers (clang++ alone)" OFF)
option(MIXGEMM_WERROR "Treat warnings in our code as errors" OFF)
option(MIXGEMM_UNITY "Compile the files of a folder together: half the work, more of it after an edit" ON)
option(MIXGEMM_NVTX "Name plans and runs in profilers by NVTX ranges" OFF)
option(MIXGEMM_BUNDLE "Programs that carry all but libc, to take to another machine" OFF)
set(MIXGEMM_SANITIZE "" CACHE STRING "Sanitizers of the host code: address,undefined or thread")
set(MIXGEMM_VARIANTS default CACHE STRING "Kernel set: minimal, default or all")
set_property(CACHE MIXGEMM_VARIANTS PROPERTY STRINGS minimal default all)

set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(PROJECT_IS_TOP_LEVEL)  # programs in build/<preset>/bin
  set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/bin)
endif()
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)

add_library(mixgemm_options INTERFACE)
target_compile_features(mixgemm_options INTERFACE cxx_std_20)
target_compile_options(mixgemm_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX,C>:-Wall -Wextra $<$<BOOL:${MIXGEMM_WERROR}>:-Werror>>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # Its garbage collector takes a tenth of the time; without, a file of ours peaks at 1.1 GB, not 0.8.
  target_compile_options(mixgemm_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:--param=ggc-min-heapsize=1000000>)
endif()
if(MIXGEMM_SANITIZE)
  # Optimizing checked code takes g++ many times as long (a folder: 198 CPU-s at -O2, 22 so).
  target_compile_options(mixgemm_options INTERFACE $<$<COMPILE_LANGUAGE:CXX,C>:-O1 -g1>)
  target_compile_options(mixgemm_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX,C>:-fsanitize=${MIXGEMM_SANITIZE} -fno-omit-frame-pointer
    -fno-sanitize-recover=all>)
  target_link_options(mixgemm_options INTERFACE -fsanitize=${MIXGEMM_SANITIZE})
endif()
# mixgemm_sources(TARGET GROUP sources...): adds files that MIXGEMM_UNITY compiles together with the
# others of the group, because most of the work is reading the headers that they share. What their
# anonymous namespaces hold is one then, so each name exists once. Files with options of their own
# stay apart. MIXGEMM_UNITY=WHOLE makes a target one group: least work where all is compiled once.
function(mixgemm_sources target group)
  target_sources(${target} PRIVATE ${ARGN})
  if(MIXGEMM_UNITY)
    if(MIXGEMM_UNITY STREQUAL WHOLE)
      set(group whole)
    endif()
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
    set_source_files_properties(${ARGN} TARGET_DIRECTORY ${target} PROPERTIES UNITY_GROUP ${group})
  endif()
endfunction()
if(MIXGEMM_UNITY AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # It takes the file that includes our sources for a user of them, who would see their internals.
  target_compile_options(mixgemm_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wno-subobject-linkage>)
endif()
if(MIXGEMM_BUNDLE)
  # glibc stays dynamic, because a driver or a BLAS found at run time needs the machine's own.
  set(BUILD_SHARED_LIBS OFF)
  add_link_options($<$<LINK_LANGUAGE:CXX,C>:-static-libgcc> $<$<LINK_LANGUAGE:CXX>:-static-libstdc++>
    $<$<CONFIG:Release>:-s>)
endif()
if(MIXGEMM_NVTX)  # headers alone; they look for a profiler at run time
  find_path(MIXGEMM_NVTX_INCLUDE nvtx3/nvToolsExt.h
    HINTS /usr/local/cuda/include ENV CUDA_PATH PATH_SUFFIXES include REQUIRED)
  target_include_directories(mixgemm_options SYSTEM INTERFACE $<BUILD_INTERFACE:${MIXGEMM_NVTX_INCLUDE}>)
  target_compile_definitions(mixgemm_options INTERFACE $<BUILD_INTERFACE:MIXGEMM_NVTX=1>)
endif()
find_package(Threads REQUIRED)
target_link_libraries(mixgemm_options INTERFACE Threads::Threads ${CMAKE_DL_LIBS})
# fmt comes from its headers alone, so that the library needs no shared library of its own. Its
# functions are compiled once, in src/util/fmt.cpp, which knows version 9; for others, everywhere.
find_package(fmt REQUIRED)
if(fmt_VERSION VERSION_LESS 10)
  set(MIXGEMM_FMT_ONCE ON)
  target_include_directories(mixgemm_options SYSTEM INTERFACE
    $<BUILD_INTERFACE:$<TARGET_PROPERTY:fmt::fmt-header-only,INTERFACE_INCLUDE_DIRECTORIES>>)
else()
  target_link_libraries(mixgemm_options INTERFACE $<BUILD_INTERFACE:fmt::fmt-header-only>)
endif()
