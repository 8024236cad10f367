# Unit files and what belongs to them: how they are filled in, and where they go.
set(LIVEUPDATE_SYSTEMD_DIR lib/systemd CACHE STRING "Where systemd looks for units, below the prefix")

set(LIBEXECDIR ${CMAKE_INSTALL_FULL_LIBEXECDIR})
set(BINDIR ${CMAKE_INSTALL_FULL_BINDIR})
if(CMAKE_INSTALL_PREFIX STREQUAL "/usr/local") # CMake's default; packages and the documents install to /usr
    set(LIBEXECDIR /usr/libexec)
    set(BINDIR /usr/bin)
endif()

set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS units/hardening.conf)
file(READ ${CMAKE_CURRENT_SOURCE_DIR}/units/hardening.conf HARDENING)
set(AFTER_DBUS " dbus.service")
set(WANTED_BY liveupdate.target)
configure_file(units/liveupdate@.service.in system/liveupdate@.service @ONLY)
# A user's manager can filter neither devices nor capabilities, and needs no filter for what the user may not do.
set(HARDENING "NoNewPrivileges=yes\n")
set(AFTER_DBUS "")
set(WANTED_BY default.target)
configure_file(units/liveupdate@.service.in user/liveupdate@.service @ONLY)
configure_file(units/liveupdate-rollout.service.in system/liveupdate-rollout.service @ONLY)
configure_file(units/liveupdate-rollout.path.in system/liveupdate-rollout.path @ONLY)

install(FILES
    ${CMAKE_CURRENT_BINARY_DIR}/system/liveupdate@.service
    ${CMAKE_CURRENT_BINARY_DIR}/system/liveupdate-rollout.service
    ${CMAKE_CURRENT_BINARY_DIR}/system/liveupdate-rollout.path
    units/liveupdate.target units/liveupdate.slice
    DESTINATION ${LIVEUPDATE_SYSTEMD_DIR}/system COMPONENT liveupdate)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/user/liveupdate@.service units/liveupdate.slice
    DESTINATION ${LIVEUPDATE_SYSTEMD_DIR}/user COMPONENT liveupdate)
install(FILES liveupdate.catalog DESTINATION ${LIVEUPDATE_SYSTEMD_DIR}/catalog COMPONENT liveupdate)
install(FILES 90-liveupdate.preset
    DESTINATION ${LIVEUPDATE_SYSTEMD_DIR}/system-preset COMPONENT liveupdate)
install(FILES liveupdate.tmpfiles DESTINATION lib/tmpfiles.d RENAME liveupdate.conf COMPONENT liveupdate)
install(FILES liveupdate.sysusers DESTINATION lib/sysusers.d RENAME liveupdate.conf COMPONENT liveupdate)
