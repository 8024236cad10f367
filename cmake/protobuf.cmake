# liveupdate_protobuf(TARGET FILE...): a static library of the messages in FILEs (paths from the source
# root, which is also how they are included: "handoff/proto/session.pb.h").
function(liveupdate_protobuf target)
    set(generated)
    foreach(file IN LISTS ARGN)
        string(REGEX REPLACE "\\.proto$" "" stem ${file})
        set(out ${CMAKE_BINARY_DIR}/${stem}.pb)
        add_custom_command(
            OUTPUT ${out}.cc ${out}.h
            COMMAND ${CMAKE_COMMAND} -E env $<TARGET_FILE:protobuf::protoc>
                --proto_path=${CMAKE_SOURCE_DIR} --cpp_out=${CMAKE_BINARY_DIR} ${CMAKE_SOURCE_DIR}/${file}
            DEPENDS ${CMAKE_SOURCE_DIR}/${file}
            VERBATIM)
        list(APPEND generated ${out}.cc)
    endforeach()
    add_library(${target} STATIC ${generated})
    target_include_directories(${target} SYSTEM PUBLIC $<BUILD_INTERFACE:${CMAKE_BINARY_DIR}>)
    target_link_libraries(${target} PUBLIC protobuf::libprotobuf)
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE ON)
endfunction()
