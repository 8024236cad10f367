#include "vmm/devices/state_message.hpp"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/message.h>
#include <google/protobuf/unknown_field_set.h>

#include <cstdio>
#include <exception>

namespace liveupdate::vmm {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

std::string hex(uint64_t value) {
    char text[24];
    std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
    return text;
}

// The name of the first field that should be there and is not, or an empty string.
std::string missing_field(const Message& message) {
    const auto& descriptor = *message.GetDescriptor();
    const auto& reflection = *message.GetReflection();
    for (int i = 0; i < descriptor.field_count(); ++i) {
        const FieldDescriptor* field = descriptor.field(i);
        if (field->is_repeated()) {
            if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
            for (int k = 0; k < reflection.FieldSize(message, field); ++k) {
                auto inner = missing_field(reflection.GetRepeatedMessage(message, field, k));
                if (!inner.empty()) return field->name() + "." + inner;
            }
            continue;
        }
        // A member of a real oneof is absent when another one is chosen; that is for the device to judge.
        if (field->real_containing_oneof() != nullptr) continue;
        if (field->has_presence() && !reflection.HasField(message, field)) return field->name();
        if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
            auto inner = missing_field(reflection.GetMessage(message, field));
            if (!inner.empty()) return field->name() + "." + inner;
        }
    }
    return {};
}

bool has_unknown_fields(const Message& message) {
    const auto& reflection = *message.GetReflection();
    if (!reflection.GetUnknownFields(message).empty()) return true;
    std::vector<const FieldDescriptor*> fields;
    reflection.ListFields(message, &fields);
    for (const FieldDescriptor* field : fields) {
        if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
        if (!field->is_repeated()) {
            if (has_unknown_fields(reflection.GetMessage(message, field))) return true;
            continue;
        }
        for (int k = 0; k < reflection.FieldSize(message, field); ++k)
            if (has_unknown_fields(reflection.GetRepeatedMessage(message, field, k))) return true;
    }
    return false;
}

Result<void> check_version(uint32_t version, const StateSchema& schema) {
    if (version >= schema.oldest_loadable && version <= schema.version) return {};
    return Error(ErrorCode::kRefused, "state of " + schema.section + " has version " +
                                          std::to_string(version) + ", this binary loads versions " +
                                          std::to_string(schema.oldest_loadable) + " to " +
                                          std::to_string(schema.version));
}

Error refused(const StateSchema& schema, const std::string& why) {
    return {ErrorCode::kRefused, "state of " + schema.section + " " + why};
}

} // namespace

Result<std::string> serialise_state(const Message& message) try {
    std::string bytes;
    {
        google::protobuf::io::StringOutputStream stream(&bytes);
        google::protobuf::io::CodedOutputStream coded(&stream);
        coded.SetSerializationDeterministic(true);
        if (!message.SerializeToCodedStream(&coded))
            return Error(ErrorCode::kInternal, "serialise " + message.GetTypeName() + ": protobuf gave up");
    }
    return bytes;
} catch (const std::exception& e) {
    return Error(ErrorCode::kInternal, std::string("serialise device state: ") + e.what());
}

Result<void> parse_state(
    Message& message, std::string_view bytes, uint32_t version, const StateSchema& schema) try {
    TRY(check_version(version, schema));
    if (bytes.size() > kMaxStateBytes)
        return refused(schema, "is " + std::to_string(bytes.size()) + " bytes long, at most " +
                                   std::to_string(kMaxStateBytes) + " are taken");
    if (!message.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
        return refused(schema, "is not a " + message.GetTypeName() + " message");
    if (has_unknown_fields(message))
        return refused(
            schema, "has fields that version " + std::to_string(schema.version) + " does not know");
    if (version != schema.version) return {};
    if (const auto field = missing_field(message); !field.empty())
        return refused(schema, "lacks the field \"" + field + "\"");
    return {};
} catch (const std::exception& e) {
    return refused(schema, std::string("could not be parsed: ") + e.what());
}

Result<void> check_at_most(std::string_view field, uint64_t value, uint64_t limit) {
    if (value <= limit) return {};
    return Error(ErrorCode::kRefused, "field \"" + std::string(field) + "\" is " + std::to_string(value) +
                                          ", at most " + std::to_string(limit) + " is possible");
}

Result<void> check_bits(std::string_view field, uint64_t value, uint64_t mask) {
    if ((value & ~mask) == 0) return {};
    return Error(ErrorCode::kRefused,
        "field \"" + std::string(field) + "\" is " + hex(value) + ", only the bits " + hex(mask) + " exist");
}

} // namespace liveupdate::vmm
