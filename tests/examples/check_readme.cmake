# SPDX-License-Identifier: Apache-2.0
# cmake -DSOURCE_DIR=… -P: the README's C++ is the example that is compiled, to the letter.
file(READ ${SOURCE_DIR}/tests/examples/readme.cpp source)
file(READ ${SOURCE_DIR}/README.md readme)
string(FIND "${source}" "// readme-begin\n" begin)
string(FIND "${source}" "// readme-end" end)
math(EXPR begin "${begin} + 16")
math(EXPR length "${end} - ${begin}")
string(SUBSTRING "${source}" ${begin} ${length} example)
string(FIND "${readme}" "${example}" place)
if(place EQUAL -1)
  message(FATAL_ERROR "README.md must contain this, from tests/examples/readme.cpp:\n${example}")
endif()
