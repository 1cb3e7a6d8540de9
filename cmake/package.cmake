# In a wheel everything sits below headkit/, so that find_package works against an installed wheel.
include(CMakePackageConfigHelpers)
if(SKBUILD)
  set(_library_dir headkit/lib)
  set(_include_dir headkit/include)
  set(_cmake_dir headkit/share/cmake/headkit)
else()
  set(_library_dir ${CMAKE_INSTALL_LIBDIR})
  set(_include_dir ${CMAKE_INSTALL_INCLUDEDIR})
  set(_cmake_dir ${CMAKE_INSTALL_DATADIR}/cmake/headkit)
endif()
if(SKBUILD)
  set_target_properties(headkit PROPERTIES INSTALL_RPATH "$ORIGIN/../../torch/lib")
else()
  set_target_properties(headkit PROPERTIES INSTALL_RPATH "${HEADKIT_TORCH_ROOT}/lib")
endif()
install(TARGETS headkit EXPORT headkit-targets LIBRARY DESTINATION ${_library_dir}
        INCLUDES DESTINATION ${_include_dir})
install(DIRECTORY include/headkit DESTINATION ${_include_dir} FILES_MATCHING PATTERN "*.h")
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/include/headkit/core/version.h
        DESTINATION ${_include_dir}/headkit/core)
install(EXPORT headkit-targets NAMESPACE headkit:: DESTINATION ${_cmake_dir})
configure_package_config_file(cmake/headkit-config.cmake.in
  ${CMAKE_CURRENT_BINARY_DIR}/headkit-config.cmake INSTALL_DESTINATION ${_cmake_dir})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/headkit-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/headkit-config.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/headkit-config-version.cmake
              cmake/torch_wheel.cmake
        DESTINATION ${_cmake_dir})
