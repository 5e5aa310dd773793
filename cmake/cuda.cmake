# SPDX-License-Identifier: Apache-2.0
# The CUDA compiler, its flags and the architectures to build for.
#   -DCMAKE_CUDA_ARCHITECTURES=80|86|89|90|90a|native or a list; "80;90a" where not given.
# Every unit names its own -gencode. Hopper kernels exist as sm_90a only (wgmma, setmaxnreg), however
# the architecture is spelled. All others are served by the kernels for SM80, compiled for each
# architecture of the list but Hopper: code for sm_80 also runs on 8.6 and 8.9, and the PTX that comes
# along on everything newer.

# mixgemm_cuda_architectures(LIST OUT): numbers, each once: "80;90a" and "80-real;90" give "80;90".
function(mixgemm_cuda_architectures requested out)
  set(numbers "")
  foreach(entry IN LISTS requested)
    if(entry MATCHES "^(native|all|all-major)$")
      set(found "")
      if(entry STREQUAL native)
        # The driver's answer; nvcc's own -arch=native gives up where there is no GPU.
        execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
          OUTPUT_VARIABLE found ERROR_QUIET RESULT_VARIABLE failed)
        string(REGEX MATCHALL "[0-9]+\\.[0-9]" found "${found}")
        string(REPLACE "." "" found "${found}")
        if(failed OR NOT found)
          message(STATUS "mixgemm: no GPU found for CMAKE_CUDA_ARCHITECTURES=native, building for 80;90a")
        endif()
      endif()
      if(NOT found)
        set(found 80 90)
      endif()
      list(APPEND numbers ${found})
    elseif(entry MATCHES "^([0-9]+)[af]?(-real|-virtual)?$")
      list(APPEND numbers ${CMAKE_MATCH_1})
    else()
      message(FATAL_ERROR "CMAKE_CUDA_ARCHITECTURES must be native or a list of numbers such as "
        "\"80;90a\"; got \"${requested}\"")
    endif()
  endforeach()
  list(REMOVE_DUPLICATES numbers)
  set(${out} "${numbers}" PARENT_SCOPE)
endfunction()

if(NOT CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80 90a)
endif()
mixgemm_cuda_architectures("${CMAKE_CUDA_ARCHITECTURES}" MIXGEMM_CUDA_ARCHITECTURES)
message(STATUS "mixgemm: CUDA architectures ${MIXGEMM_CUDA_ARCHITECTURES}")
# CMake adds no architecture flags of its own, in the compiler test neither.
set(CMAKE_CUDA_ARCHITECTURES OFF)

if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  find_program(MIXGEMM_NVCC nvcc PATHS /usr/local/cuda/bin)
  if(MIXGEMM_NVCC)
    set(CMAKE_CUDA_COMPILER ${MIXGEMM_NVCC})
  endif()
endif()
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
enable_language(CUDA)
find_package(Python3 3.11 REQUIRED COMPONENTS Interpreter)
find_package(CUDAToolkit REQUIRED)

# The launcher keeps what ptxas says of each unit beside its object, for the static checks, and with
# MIXGEMM_WERROR refuses a unit whose wgmma ptxas serializes.
set(CMAKE_CUDA_COMPILER_LAUNCHER ${Python3_EXECUTABLE}
  ${PROJECT_SOURCE_DIR}/tools/compile_launcher.py)
if(MIXGEMM_WERROR)
  list(APPEND CMAKE_CUDA_COMPILER_LAUNCHER --strict)
endif()
if(MIXGEMM_CCACHE)
  list(APPEND CMAKE_CUDA_COMPILER_LAUNCHER ${MIXGEMM_CCACHE})
endif()

# CMake 3.25 passes no -std=c++20 to nvcc 13, so it is a flag of ours. Compressed device code takes a
# fifth of the space (measured: 99 instead of 468 KB for five kernels).
set(MIXGEMM_CUDA_FLAGS -std=c++20 -O3 --expt-relaxed-constexpr -Xptxas=-v -Xfatbin=-compress-all)
set(MIXGEMM_SM90_FLAGS -gencode=arch=compute_90a,code=sm_90a)
# The kernels for SM80 may be compiled for something else than the list says, e.g. "sm_90;compute_80" to
# measure on Hopper what the driver's compiler has no part in.
set(MIXGEMM_SM80_CODE "" CACHE STRING
  "What the kernels for SM80 are compiled to; empty: the architectures of the list, and PTX")
set(code ${MIXGEMM_SM80_CODE})
if(NOT code)
  foreach(number IN LISTS MIXGEMM_CUDA_ARCHITECTURES)
    if(NOT number EQUAL 90)
      list(APPEND code sm_${number})
    endif()
  endforeach()
  list(APPEND code compute_80)
endif()
list(TRANSFORM code PREPEND -gencode=arch=compute_80,code= OUTPUT_VARIABLE MIXGEMM_SM80_FLAGS)
target_compile_options(mixgemm_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:${MIXGEMM_CUDA_FLAGS};$<$<BOOL:${MIXGEMM_WERROR}>:-Werror=all-warnings>>")
# libcuda isn't linked: its entry points are looked up at run time, so that the library loads on a
# machine without a driver.
target_link_libraries(mixgemm_options INTERFACE $<BUILD_INTERFACE:CUDA::cudart_static>)

# mixgemm_cuda_sources(TARGET ARCH sources...): adds .cu files compiled for 90 (Hopper), for 80 (all
# others) or for all of the build's architectures.
function(mixgemm_cuda_sources target arch)
  set(gencode "")
  if(arch EQUAL 90 OR (arch STREQUAL all AND 90 IN_LIST MIXGEMM_CUDA_ARCHITECTURES))
    list(APPEND gencode ${MIXGEMM_SM90_FLAGS})
  endif()
  if(arch EQUAL 80 OR (arch STREQUAL all AND NOT MIXGEMM_CUDA_ARCHITECTURES STREQUAL 90))
    list(APPEND gencode ${MIXGEMM_SM80_FLAGS})
  endif()
  target_sources(${target} PRIVATE ${ARGN})
  set_source_files_properties(${ARGN} TARGET_DIRECTORY ${target} PROPERTIES
    COMPILE_OPTIONS "${gencode}")
endfunction()
