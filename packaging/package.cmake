# .deb packages by CPack: `cmake --build BUILD --target package` or `cd BUILD && cpack`. Three of them: liveupdate
# (supervisor, command, units, documents), liveupdate-vmm (the VMM), libhandoff-dev (the library).
install(FILES packaging/liveupdate.toml DESTINATION /etc/liveupdate COMPONENT liveupdate EXCLUDE_FROM_ALL)
install(FILES packaging/needrestart.conf DESTINATION /etc/needrestart/conf.d RENAME liveupdate.conf
    COMPONENT liveupdate EXCLUDE_FROM_ALL)
install(FILES docs/examples/web1.toml
    DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/liveupdate/examples COMPONENT liveupdate)
foreach(page liveupdate.1 liveupdate.toml.5 liveupdate-vm.toml.5 liveupdated.8)
    string(REGEX MATCH "[0-9]$" section ${page})
    install(FILES docs/man/${page} DESTINATION ${CMAKE_INSTALL_MANDIR}/man${section} COMPONENT liveupdate)
endforeach()
set(LIVEUPDATE_ZSH_COMPLETIONS ${CMAKE_INSTALL_DATADIR}/zsh/vendor-completions CACHE STRING
    "Where zsh looks for completions, below the prefix; often share/zsh/site-functions")
install(FILES packaging/completions/liveupdate.bash
    DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME liveupdate COMPONENT liveupdate)
install(FILES packaging/completions/_liveupdate DESTINATION ${LIVEUPDATE_ZSH_COMPLETIONS} COMPONENT liveupdate)
install(FILES packaging/completions/liveupdate.fish
    DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d COMPONENT liveupdate)

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME liveupdate)
set(CPACK_PACKAGE_VERSION ${PROJECT_VERSION})
set(CPACK_PACKAGE_CONTACT "The liveupdate developers <liveupdate@localhost>")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_COMPONENTS_ALL liveupdate liveupdate-vmm handoff)
set(CPACK_COMPONENTS_GROUPING IGNORE)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_ENABLE_COMPONENT_DEPENDS OFF)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_PACKAGE_SECTION admin)

set(CPACK_DEBIAN_LIVEUPDATE_PACKAGE_NAME liveupdate)
set(CPACK_DEBIAN_LIVEUPDATE_DESCRIPTION "replaces the VMM under running virtual machines
 The supervisor of virtual machines, the command, and systemd units. An upgrade of the
 VMM updates the guests that run, without a reboot.")
set(CPACK_DEBIAN_LIVEUPDATE_PACKAGE_RECOMMENDS "liveupdate-vmm, dbus, libnbd0")
set(CPACK_DEBIAN_LIVEUPDATE_PACKAGE_CONTROL_EXTRA
    "${CMAKE_SOURCE_DIR}/packaging/debian/postinst"
    "${CMAKE_SOURCE_DIR}/packaging/debian/prerm"
    "${CMAKE_SOURCE_DIR}/packaging/debian/postrm"
    "${CMAKE_SOURCE_DIR}/packaging/debian/triggers"
    "${CMAKE_SOURCE_DIR}/packaging/debian/conffiles")

set(CPACK_DEBIAN_LIVEUPDATE-VMM_PACKAGE_NAME liveupdate-vmm)
set(CPACK_DEBIAN_LIVEUPDATE-VMM_DESCRIPTION "VMM whose binary can be replaced under a running guest
 The virtual machine monitor of liveupdate, on KVM.")

# Loaded when a guest is restored from an NBD server, hence found by no dpkg-shlibdeps.
set(CPACK_DEBIAN_LIVEUPDATE-VMM_PACKAGE_RECOMMENDS "libnbd0")

set(CPACK_DEBIAN_HANDOFF_PACKAGE_NAME libhandoff-dev)
set(CPACK_DEBIAN_HANDOFF_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_HANDOFF_PACKAGE_DEPENDS "libprotobuf-dev")
set(CPACK_DEBIAN_HANDOFF_DESCRIPTION "library that makes a VMM updatable
 Headers, static library and CMake package of libhandoff.")
include(CPack)
