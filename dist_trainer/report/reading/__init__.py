"""What reads a run's folder: records, plan and configuration, once, in bounded room."""
