// What several VMs are doing, while they do it: on a terminal one line for each, redrawn in place; in a pipe
// a line for each change. Every function may be called from any thread.
#pragma once

#include <chrono>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "supervisor/cli/io.hpp"

namespace liveupdate::supervisor::cli {

class Progress {
public:
    // kSilent: for --json, where nothing but the document is written.
    enum class Mode { kPlain, kLive, kSilent };

    Progress(CliIo& io, Mode mode, const std::vector<std::string>& names);
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;

    // `name` (one of those of the constructor) has entered a phase. Phases are the supervisor's words; an
    // unknown one is shown and leaves the bar as it is.
    void phase(const std::string& name, std::string_view phase, std::string_view detail);
    // The last word about a VM, in the colour of `code`.
    void end(const std::string& name, ExitCode code, std::string_view sentence);
    // Redraws the times that have gone by, on a terminal.
    void tick();

private:
    using Clock = std::chrono::steady_clock;
    struct Line {
        std::string name;
        std::string phase;
        std::string detail;
        size_t steps = 0;          // of the bar
        Clock::time_point since{}; // the first phase
        std::string sentence;      // once it has ended
        ExitCode code = ExitCode::kDone;
    };
    Line& line_of(const std::string& name);
    std::string render(const Line& line) const;
    void redraw();

    CliIo& io_;
    const Mode mode_;
    std::mutex mutex_;
    std::vector<Line> lines_;
    size_t name_width_ = 0;
    size_t drawn_ = 0; // lines on the screen above the cursor
};

// The mode for a command's output.
Progress::Mode progress_mode(const CliIo& io);

} // namespace liveupdate::supervisor::cli
