# SPDX-License-Identifier: Apache-2.0
# libmixgemm from the objects, and its install rules.
add_library(mixgemm)
add_library(mixgemm::mixgemm ALIAS mixgemm)
target_sources(mixgemm PRIVATE $<TARGET_OBJECTS:mixgemm_objects>)
target_link_libraries(mixgemm PRIVATE mixgemm_options)
target_include_directories(mixgemm PUBLIC
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
  $<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/include>
  $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
if(NOT BUILD_SHARED_LIBS)
  target_compile_definitions(mixgemm PUBLIC MIXGEMM_STATIC)
endif()
target_compile_features(mixgemm PUBLIC cxx_std_20)
set_target_properties(mixgemm PROPERTIES VERSION ${PROJECT_VERSION}
  SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
