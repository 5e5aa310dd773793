# SPDX-License-Identifier: Apache-2.0
# LIBRARY is called SONAME and needs the C and C++ runtimes alone.
execute_process(COMMAND ${READELF} -dW ${LIBRARY}
  OUTPUT_VARIABLE dynamic COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^\n]*\\(NEEDED\\)[^\n]*" needed "${dynamic}")
if(NOT needed)
  message(FATAL_ERROR "no NEEDED entry: readelf's output isn't understood\n${dynamic}")
endif()
foreach(line IN LISTS needed)
  if(NOT line MATCHES "\\[(libc\\.so|libm\\.so|libstdc\\+\\+\\.so|libgcc_s\\.so|ld-linux)[^]]*\\]")
    message(SEND_ERROR "needs more than the C and C++ runtimes: ${line}")
  endif()
endforeach()
if(NOT dynamic MATCHES "\\(SONAME\\)[^\n]*\\[([^]]*)\\]" OR NOT CMAKE_MATCH_1 STREQUAL SONAME)
  message(SEND_ERROR "SONAME must be ${SONAME}; got ${CMAKE_MATCH_1}")
endif()
if(dynamic MATCHES "\\((RPATH|RUNPATH)\\)[^\n]*")
  message(SEND_ERROR "has a search path of its own: ${CMAKE_MATCH_0}")
endif()
