# libhandoff as a CMake package: find_package(handoff), then link handoff::handoff. Installed by itself with
# cmake --install BUILD --component handoff.
include(CMakePackageConfigHelpers)

set(handoff_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/handoff)

install(TARGETS handoff handoff_base handoff_messages
    EXPORT handoffTargets
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT handoff)
install(EXPORT handoffTargets NAMESPACE handoff:: DESTINATION ${handoff_package_dir} COMPONENT handoff)

install(DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}/
    DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/handoff COMPONENT handoff
    FILES_MATCHING PATTERN "*.hpp" PATTERN "proto/*.proto" PATTERN "example" EXCLUDE PATTERN "save" EXCLUDE)
install(FILES ${CMAKE_BINARY_DIR}/handoff/proto/session.pb.h
    DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/handoff/proto COMPONENT handoff)

configure_package_config_file(handoffConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/handoffConfig.cmake
    INSTALL_DESTINATION ${handoff_package_dir})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/handoffConfigVersion.cmake
    COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/handoffConfig.cmake
    ${CMAKE_CURRENT_BINARY_DIR}/handoffConfigVersion.cmake
    DESTINATION ${handoff_package_dir} COMPONENT handoff)
