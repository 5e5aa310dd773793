# SPDX-License-Identifier: Apache-2.0
# libmixgemm from the objects, and its install rules: headers, library, CMake package, pkg-config.
option(MIXGEMM_INSTALL "Install the library's files" ${PROJECT_IS_TOP_LEVEL})

add_library(mixgemm)
add_library(mixgemm::mixgemm ALIAS mixgemm)
target_sources(mixgemm PRIVATE $<TARGET_OBJECTS:mixgemm_objects>
  $<TARGET_OBJECTS:mixgemm_file_objects>)
target_link_libraries(mixgemm PRIVATE $<BUILD_INTERFACE:mixgemm_options> Threads::Threads ${CMAKE_DL_LIBS})
target_include_directories(mixgemm PUBLIC
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
  $<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/include>
  $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_compile_features(mixgemm PUBLIC cxx_std_20)
set_target_properties(mixgemm PROPERTIES VERSION ${PROJECT_VERSION}
  SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
if(BUILD_SHARED_LIBS)
  # Visibility hides our internals; the version script also hides what templates of the standard
  # library leave behind. Undefined references are errors here rather than in the user's link.
  set(mixgemm_symbols ${PROJECT_SOURCE_DIR}/cmake/symbols.map)
  target_link_options(mixgemm PRIVATE LINKER:--version-script=${mixgemm_symbols})
  if(NOT MIXGEMM_SANITIZE)  # the sanitizers' run-time symbols come with the program
    target_link_options(mixgemm PRIVATE LINKER:-z,defs)
  endif()
  set_property(TARGET mixgemm APPEND PROPERTY LINK_DEPENDS ${mixgemm_symbols})
else()
  # In a static library the API is hidden too, so that a shared library that contains it doesn't
  # offer it to others.
  target_compile_definitions(mixgemm PUBLIC MIXGEMM_STATIC)
  target_compile_definitions(mixgemm_objects PUBLIC MIXGEMM_STATIC)
endif()

if(MIXGEMM_CUDA)
  # A static library needs the CUDA runtime at its user's link: the install tree brings it along, so
  # that the user needs no toolkit.
  target_link_libraries(mixgemm PRIVATE $<BUILD_INTERFACE:CUDA::cudart_static>
    $<$<NOT:$<BOOL:${BUILD_SHARED_LIBS}>>:$<INSTALL_INTERFACE:mixgemm::cudart>>)
endif()

if(NOT MIXGEMM_INSTALL)
  return()
endif()
include(CMakePackageConfigHelpers)
set(mixgemm_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/mixgemm)
install(TARGETS mixgemm EXPORT mixgemm_targets COMPONENT mixgemm
  RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR}
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} NAMELINK_COMPONENT mixgemm
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/mixgemm ${PROJECT_BINARY_DIR}/include/mixgemm
  DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT mixgemm
  FILES_MATCHING PATTERN "*.hpp" PATTERN "*.h")
install(EXPORT mixgemm_targets FILE mixgemmTargets.cmake NAMESPACE mixgemm::
  DESTINATION ${mixgemm_cmake_dir} COMPONENT mixgemm)
configure_package_config_file(cmake/mixgemmConfig.cmake.in cmake/mixgemmConfig.cmake
  INSTALL_DESTINATION ${mixgemm_cmake_dir})
# Before 1.0 a minor version may break the ABI (docs/abi_and_versions.md).
write_basic_package_version_file(cmake/mixgemmConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/cmake/mixgemmConfig.cmake
              ${PROJECT_BINARY_DIR}/cmake/mixgemmConfigVersion.cmake
  DESTINATION ${mixgemm_cmake_dir} COMPONENT mixgemm)

# pkg-config: paths relative to the file, so that the tree may be moved.
if(NOT BUILD_SHARED_LIBS)
  set(mixgemm_pc_cflags " -DMIXGEMM_STATIC")
  set(mixgemm_pc_libs " -lstdc++ -lm -pthread -ldl")
  if(MIXGEMM_CUDA)
    set(mixgemm_pc_libs " -L\${libdir}/mixgemm -lcudart_static -lrt${mixgemm_pc_libs}")
    install(FILES ${CUDA_cudart_static_LIBRARY}
      DESTINATION ${CMAKE_INSTALL_LIBDIR}/mixgemm COMPONENT mixgemm)
  endif()
endif()
cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX
  BASE_DIRECTORY ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig OUTPUT_VARIABLE mixgemm_pc_prefix)
configure_file(cmake/mixgemm.pc.in cmake/mixgemm.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/cmake/mixgemm.pc
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT mixgemm)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT mixgemm)
if(EXISTS ${PROJECT_SOURCE_DIR}/THIRD_PARTY_NOTICES)
  install(FILES ${PROJECT_SOURCE_DIR}/THIRD_PARTY_NOTICES
    DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT mixgemm)
endif()
