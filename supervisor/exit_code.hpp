// The exit codes of the `liveupdate` command: part of its interface, never renumbered.
#pragma once

#include <array>
#include <cerrno>
#include <initializer_list>

#include "handoff/base/result.hpp"
#include "supervisor/record.hpp"

namespace liveupdate::supervisor {

enum class ExitCode : int {
    kDone = 0,
    kInternal = 1,    // internal or unexpected error
    kUsage = 2,       // wrong usage or configuration
    kNothingToDo = 3, // what was asked for is so already
    kRefused = 4,     // refused for a stated reason; the guest was not touched
    kRolledBack = 5,  // rolled back or abandoned; the guest goes on in the source
    kFailed = 6,      // failed; the message tells what is now
    kLost = 7,        // the guest is lost
    kUnreachable = 8, // no such VM, or its supervisor does not answer
    kPermission = 9,  // the control socket, /dev/kvm or a file is not for this user
    kAborted = 10,    // somebody asked for the work to stop
};

struct OutcomeExit {
    Outcome outcome;
    ExitCode code;
};
constexpr std::array kOutcomeExits = {
    OutcomeExit{Outcome::kCompleted, ExitCode::kDone},
    OutcomeExit{Outcome::kPlanned, ExitCode::kDone},
    OutcomeExit{Outcome::kNothingToDo, ExitCode::kNothingToDo},
    OutcomeExit{Outcome::kRefused, ExitCode::kRefused},
    OutcomeExit{Outcome::kAbandoned, ExitCode::kRolledBack},
    OutcomeExit{Outcome::kRolledBack, ExitCode::kRolledBack},
    OutcomeExit{Outcome::kFailed, ExitCode::kFailed},
    OutcomeExit{Outcome::kLost, ExitCode::kLost},
};

constexpr ExitCode exit_code(Outcome outcome) {
    return kOutcomeExits[static_cast<size_t>(outcome)].code;
}

// From the least to the worst. "Nothing to do" is the least: work that was done for one VM tells more than
// that there was none for another.
constexpr std::array kBySeverity = {ExitCode::kNothingToDo, ExitCode::kDone, ExitCode::kUsage,
    ExitCode::kUnreachable, ExitCode::kPermission, ExitCode::kRefused, ExitCode::kAborted,
    ExitCode::kRolledBack, ExitCode::kInternal, ExitCode::kFailed, ExitCode::kLost};

constexpr size_t severity(ExitCode code) {
    for (size_t i = 0; i < kBySeverity.size(); ++i)
        if (kBySeverity[i] == code) return i;
    return kBySeverity.size();
}

// Of several VMs. An empty list is nothing to do.
constexpr ExitCode worst(ExitCode a, ExitCode b) {
    return severity(a) < severity(b) ? b : a;
}

inline ExitCode exit_code(const Error& error) {
    switch (error.code) {
    case ErrorCode::kInvalid:
        return ExitCode::kUsage;
    case ErrorCode::kRefused:
    case ErrorCode::kBusy:
    case ErrorCode::kUnsupported:
        return ExitCode::kRefused;
    case ErrorCode::kNotFound:
    case ErrorCode::kPeerGone:
        return ExitCode::kUnreachable;
    case ErrorCode::kAborted:
        return ExitCode::kAborted;
    case ErrorCode::kTimeout:
        return ExitCode::kFailed;
    case ErrorCode::kSystem:
        return error.system_errno == EACCES || error.system_errno == EPERM ? ExitCode::kPermission
                                                                           : ExitCode::kInternal;
    case ErrorCode::kProtocol:
    case ErrorCode::kInternal:
        return ExitCode::kInternal;
    }
    return ExitCode::kInternal;
}

static_assert(
    [] {
        for (size_t i = 0; i < kOutcomeExits.size(); ++i)
            if (static_cast<size_t>(kOutcomeExits[i].outcome) != i) return false;
        return kOutcomeExits.size() == static_cast<size_t>(Outcome::kLost) + 1;
    }(),
    "one row for each outcome, in the order of the enumeration");
static_assert(
    [] {
        for (int code = 0; code <= static_cast<int>(ExitCode::kAborted); ++code)
            if (severity(static_cast<ExitCode>(code)) == kBySeverity.size()) return false;
        return kBySeverity.size() == static_cast<size_t>(ExitCode::kAborted) + 1;
    }(),
    "every exit code has its place in the order");

} // namespace liveupdate::supervisor
