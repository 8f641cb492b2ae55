"""SpeechNet in miniature: two third-party recognizers teach a faster and better one."""
