# SPDX-License-Identifier: Apache-2.0
cmake_minimum_required(VERSION 3.25)
# Builds both examples with what pkg-config says alone, and runs them.
file(GLOB_RECURSE pc ${PREFIX}/mixgemm.pc)
get_filename_component(pc_dir "${pc}" DIRECTORY)
file(GLOB library ${pc_dir}/../libmixgemm.*)
list(GET library 0 library)
get_filename_component(library_dir ${library} DIRECTORY)
set(ENV{PKG_CONFIG_PATH} ${pc_dir})
set(ENV{LD_LIBRARY_PATH} ${library_dir})
execute_process(COMMAND ${PKG_CONFIG} --cflags --libs mixgemm
  OUTPUT_VARIABLE flags OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
separate_arguments(flags UNIX_COMMAND "${flags}")

file(MAKE_DIRECTORY ${WORK})
execute_process(COMMAND ${CXX_COMPILER} -std=c++20 ${EXAMPLES}/cpp_minimal/main.cpp ${flags} -o cpp_minimal
  WORKING_DIRECTORY ${WORK} COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${C_COMPILER} -std=c99 ${EXAMPLES}/c_minimal/main.c ${flags} -lm -o c_minimal
  WORKING_DIRECTORY ${WORK} COMMAND_ERROR_IS_FATAL ANY)
foreach(program cpp_minimal c_minimal)
  execute_process(COMMAND ${WORK}/${program} WORKING_DIRECTORY ${WORK} COMMAND_ERROR_IS_FATAL ANY)
endforeach()
