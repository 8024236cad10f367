// Result<T>: the value, or an Error that says what was tried, on what, and what to do.
//
// Spelled like std::expected (C++23). Every frame that passes an error on may add context with
// `context()`; the words then read from the outermost frame to the innermost: "start vm web1: map RAM
// block ram0: mmap: Cannot allocate memory".
#pragma once

#include <cerrno>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace liveupdate {

// What kind of failure it is: enough to decide by, never shown instead of the words.
enum class ErrorCode {
    kInternal,    // our own fault
    kSystem,      // a system call failed; errno is in `system_errno`
    kTimeout,     // a deadline passed
    kPeerGone,    // the peer closed its end or died
    kProtocol,    // the peer sent what the protocol does not allow
    kRefused,     // the peer, or we, declined for a stated reason
    kInvalid,     // input from a user or a file is wrong
    kUnsupported, // this host, kernel or build cannot do it
    kAborted,     // somebody asked for the work to stop
    kNotFound,    // the named thing does not exist
    kBusy,        // something else holds it
};

// One stable lower-case word for each code; used in JSON and logs.
constexpr std::string_view to_string(ErrorCode code) {
    switch (code) {
    case ErrorCode::kInternal:
        return "internal";
    case ErrorCode::kSystem:
        return "system";
    case ErrorCode::kTimeout:
        return "timeout";
    case ErrorCode::kPeerGone:
        return "peer-gone";
    case ErrorCode::kProtocol:
        return "protocol";
    case ErrorCode::kRefused:
        return "refused";
    case ErrorCode::kInvalid:
        return "invalid";
    case ErrorCode::kUnsupported:
        return "unsupported";
    case ErrorCode::kAborted:
        return "aborted";
    case ErrorCode::kNotFound:
        return "not-found";
    case ErrorCode::kBusy:
        return "busy";
    }
    return "unknown";
}

struct Error {
    ErrorCode code = ErrorCode::kInternal;
    std::string message;
    int system_errno = 0;

    Error(ErrorCode c, std::string m, int e = 0) : code(c), message(std::move(m)), system_errno(e) {}

    // The errno of the call that has just failed, in words.
    static Error from_errno(std::string_view what) {
        const int saved = errno;
        return {ErrorCode::kSystem, std::string(what) + ": " + std::strerror(saved), saved};
    }

    Error&& context(std::string_view where) && {
        message.insert(0, ": ").insert(0, where);
        return std::move(*this);
    }
};

template <typename T>
class [[nodiscard]] Result {
public:
    Result(T value) : held_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : held_(std::in_place_index<1>, std::move(error)) {}

    bool has_value() const { return held_.index() == 0; }
    explicit operator bool() const { return has_value(); }

    T& value() & { return std::get<0>(held_); }
    const T& value() const& { return std::get<0>(held_); }
    T&& value() && { return std::get<0>(std::move(held_)); }
    T& operator*() & { return value(); }
    const T& operator*() const& { return value(); }
    T&& operator*() && { return std::move(*this).value(); }
    T* operator->() { return &value(); }
    const T* operator->() const { return &value(); }

    Error& error() & { return std::get<1>(held_); }
    const Error& error() const& { return std::get<1>(held_); }
    Error&& error() && { return std::get<1>(std::move(held_)); }

    // The same result, with `where` put before the error's words.
    Result&& context(std::string_view where) && {
        if (!has_value()) std::move(std::get<1>(held_)).context(where);
        return std::move(*this);
    }

private:
    std::variant<T, Error> held_;
};

template <>
class [[nodiscard]] Result<void> {
public:
    Result() = default;
    Result(Error error) : error_(std::move(error)) {}

    bool has_value() const { return !error_; }
    explicit operator bool() const { return has_value(); }
    Error& error() & { return *error_; }
    const Error& error() const& { return *error_; }
    Error&& error() && { return std::move(*error_); }

    Result&& context(std::string_view where) && {
        if (error_) std::move(*error_).context(where);
        return std::move(*this);
    }

private:
    std::optional<Error> error_;
};

} // namespace liveupdate

#define LIVEUPDATE_CONCAT_(a, b) a##b
#define LIVEUPDATE_CONCAT(a, b) LIVEUPDATE_CONCAT_(a, b)

// TRY(expr): returns the error of a Result<void> (or of any Result whose value is not wanted).
#define TRY(expr)                                                                                            \
    do {                                                                                                     \
        if (auto try_result_ = (expr); !try_result_) return std::move(try_result_).error();                  \
    } while (false)

// TRY_ASSIGN(auto x, expr): x is the value, or the function returns the error.
#define TRY_ASSIGN(decl, expr) TRY_ASSIGN_(LIVEUPDATE_CONCAT(try_assign_, __LINE__), decl, expr)
#define TRY_ASSIGN_(name, decl, expr)                                                                        \
    auto name = (expr);                                                                                      \
    if (!name) return std::move(name).error();                                                               \
    decl = std::move(name).value()
