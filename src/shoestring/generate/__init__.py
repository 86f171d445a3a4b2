"""Room 4: sampling, the scheduler of requests, and `LanguageModel`."""
