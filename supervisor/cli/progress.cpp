#include "supervisor/cli/progress.hpp"

#include <algorithm>
#include <array>
#include <cstdio>

#include "supervisor/cli/record_view.hpp"

namespace liveupdate::supervisor::cli {
namespace {

// The bar's steps, in the order of an update.
constexpr std::array<std::string_view, 8> kSteps = {"negotiating", "preparing", "rehearsing", "pausing",
    "transferring", "committing", "probation", "completed"};

size_t step_of(std::string_view phase, size_t otherwise) {
    const auto found = std::find(kSteps.begin(), kSteps.end(), phase);
    return found == kSteps.end() ? otherwise : static_cast<size_t>(found - kSteps.begin()) + 1;
}

std::string padded(std::string text, size_t width) {
    if (text.size() < width) text.append(width - text.size(), ' ');
    return text;
}

} // namespace

Progress::Mode progress_mode(const CliIo& io) {
    return io.output == Output::kTerminal ? Progress::Mode::kLive : Progress::Mode::kPlain;
}

Progress::Progress(CliIo& io, Mode mode, const std::vector<std::string>& names) : io_(io), mode_(mode) {
    for (const auto& name : names) {
        lines_.emplace_back();
        lines_.back().name = name;
        name_width_ = std::max(name_width_, name.size());
    }
}

Progress::Line& Progress::line_of(const std::string& name) {
    return *std::find_if(lines_.begin(), lines_.end(), [&](const Line& l) { return l.name == name; });
}

void Progress::phase(const std::string& name, std::string_view phase, std::string_view detail) {
    const std::lock_guard lock(mutex_);
    Line& line = line_of(name);
    if (line.phase.empty()) line.since = Clock::now();
    line.phase = printable(phase);
    line.detail = printable(detail);
    line.steps = step_of(phase, line.steps);
    if (mode_ == Mode::kPlain) {
        io_.out << name << ": " << line.phase << (line.detail.empty() ? "" : ": ") << line.detail << '\n';
        io_.out.flush();
    }
    redraw();
}

void Progress::end(const std::string& name, ExitCode code, std::string_view sentence) {
    const std::lock_guard lock(mutex_);
    Line& line = line_of(name);
    line.sentence = printable(sentence);
    line.code = code;
    if (mode_ == Mode::kPlain) {
        io_.out << name << ": " << line.sentence << '\n';
        io_.out.flush();
    }
    redraw();
}

void Progress::tick() {
    const std::lock_guard lock(mutex_);
    redraw();
}

std::string Progress::render(const Line& line) const {
    const std::string name = padded(line.name, name_width_);
    if (!line.sentence.empty())
        return io_.paint(Colour::kBold, line.name + ":") + " " +
               io_.paint(colour_of(line.code), line.sentence);
    if (line.phase.empty()) return (name + "  " + io_.paint(Colour::kDim, "waiting"));
    const double seconds = std::chrono::duration<double>(Clock::now() - line.since).count();
    char elapsed[32];
    std::snprintf(elapsed, sizeof(elapsed), "%6.1f s", seconds);
    const std::string bar = std::string(line.steps, '#') + std::string(kSteps.size() - line.steps, '.');
    std::string text =
        name + "  " + padded(line.phase, 12) + " " + elapsed + "  [" + bar + "]  " + line.detail;
    // A line that wraps would spoil the count of lines to go up.
    if (text.size() >= io_.columns) text.resize(io_.columns - 1);
    return text;
}

void Progress::redraw() {
    if (mode_ != Mode::kLive) return;
    // Lines that have ended scroll away above the others, where they may be as long as they are.
    std::string text;
    if (drawn_ > 0) text += "\033[" + std::to_string(drawn_) + "A\r";
    text += "\033[J";
    drawn_ = 0;
    for (auto line = lines_.begin(); line != lines_.end();) {
        if (line->sentence.empty()) {
            ++line;
            continue;
        }
        text += render(*line) + "\n";
        line = lines_.erase(line);
    }
    for (const Line& line : lines_) {
        text += render(line) + "\n";
        ++drawn_;
    }
    io_.out << text;
    io_.out.flush();
}

} // namespace liveupdate::supervisor::cli
